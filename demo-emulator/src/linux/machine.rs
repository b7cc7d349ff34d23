//! The interface between the Linux side and the machine that runs the guest's instructions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::hart::Hart;
use crate::memory::Window;
use crate::riscv::interpreter;
use crate::riscv::trap::Trap;

use super::errno::Errno;
use super::observer::{MemoryObserver, NoTracking};

/// The reason why an executor returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// The instruction at `pc` needs Linux; the registers are those before the instruction.
    Trap(Trap),
    /// `exit_request` was set; the hart is between two instructions.
    Interrupted,
}

/// Runs one hart. Made, used and dropped by the hart's own thread.
pub trait Executor {
    /// Runs from `hart.pc` until an instruction needs Linux. Looks at `hart.exit_request` at its
    /// start and at least at every backward jump, and leaves it set: Linux answers the request.
    fn run(&mut self, hart: &mut Hart) -> Exit;
}

/// Makes executors and has the observer of memory events.
pub trait Machine: Send + Sync {
    /// An executor for the calling thread, which is a new hart's. EAGAIN if there is no room for
    /// another hart.
    fn executor(&self) -> Result<Box<dyn Executor>, Errno>;

    /// The observer of memory events.
    fn observer(&self) -> Arc<dyn MemoryObserver>;
}

/// `--interpret`: fetches and decodes every instruction, and stores no translation.
#[derive(Debug)]
pub struct Interpreter {
    window: Window,
}

impl Interpreter {
    /// An interpreter over the memory of `window`.
    pub fn new(window: Window) -> Self {
        Self { window }
    }
}

impl Machine for Interpreter {
    fn executor(&self) -> Result<Box<dyn Executor>, Errno> {
        Ok(Box::new(InterpreterExecutor { window: self.window }))
    }

    fn observer(&self) -> Arc<dyn MemoryObserver> {
        Arc::new(NoTracking)
    }
}

struct InterpreterExecutor {
    window: Window,
}

impl Executor for InterpreterExecutor {
    fn run(&mut self, hart: &mut Hart) -> Exit {
        while hart.exit_request.load(Ordering::Acquire) == 0 {
            if let Err(trap) = interpreter::step(hart, &self.window) {
                return Exit::Trap(trap);
            }
        }
        Exit::Interrupted
    }
}
