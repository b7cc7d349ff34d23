//! One test in a process of its own: what it does belongs to a whole process
//! (signals, limits, filters), or ends it.

use std::process::{Command, Output};

/// Set where this binary runs one test for another process of it.
const TASK: &str = "CODEWARDEN_TEST_TASK";

/// What this process was started for, where it was.
pub(crate) fn task() -> Option<String> {
    std::env::var(TASK).ok()
}

/// Runs the test `name` of this binary in a process of its own, where [`task`]
/// gives `task`, with `variables` in its environment.
pub(crate) fn run_alone(name: &str, task: &str, variables: &[(&str, &str)]) -> Output {
    let own_path = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(own_path);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(TASK, task);
    command.envs(variables.iter().copied()).output().expect("a child")
}
