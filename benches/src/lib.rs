//! Benches of codewarden; see `benches/` and README.
