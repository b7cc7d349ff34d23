//! One test in a process of its own, because it changes the whole process (signals, limits,
//! filters) or ends it.

use std::process::{Command, Output};

/// Set if this process runs one test for another process of the same binary.
const TASK: &str = "CODEWARDEN_TEST_TASK";

/// The task of this process, if another one started it.
pub(crate) fn task() -> Option<String> {
    std::env::var(TASK).ok()
}

/// Runs the test `name` of this binary in a process of its own with `variables` in its
/// environment. There [`task`] gives `task`.
pub(crate) fn run_alone(name: &str, task: &str, variables: &[(&str, &str)]) -> Output {
    let own_path = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(own_path);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(TASK, task);
    command.envs(variables.iter().copied()).output().expect("a child")
}
