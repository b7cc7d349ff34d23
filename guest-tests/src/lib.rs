//! The guests and the harness that runs them.
