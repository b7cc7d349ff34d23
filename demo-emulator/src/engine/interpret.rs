//! Runs guest code without host code, one instruction after another. The recorder learns of each
//! store before the store runs.

use codewarden::VCpu;

use super::payload::Payload;
use super::recorder::Recorder;
use super::threaded::End;
use super::tier0::DecodedBlock;
use crate::hart::Hart;
use crate::memory::Window;
use crate::riscv::exec::exec;
use crate::riscv::interpreter;
use crate::riscv::trap::{Flow, Trap};

/// Runs the instruction at `hart.pc` from its bytes.
pub(super) fn step(
    hart: &mut Hart,
    window: &Window,
    vcpu: &mut VCpu<Payload>,
    recorder: Option<&Recorder>,
) -> Result<Flow, Trap> {
    let Some(recorder) = recorder else { return interpreter::step(hart, window) };
    let inst = interpreter::fetch(window, hart.pc)?;
    let store = recorder.store(&inst, hart);
    let flow = exec(&inst, hart, window);
    let _alive = vcpu.pin();
    store.into_iter().for_each(|store| recorder.stored(store));
    flow
}

impl DecodedBlock {
    /// [`DecodedBlock::run`], with a report of each store.
    pub(super) fn run_recorded(&self, hart: &mut Hart, window: &Window, recorder: &Recorder) -> End {
        for inst in self.insts() {
            let store = recorder.store(&inst, hart);
            // The result of an AMO may overwrite the address.
            let base = hart.x[usize::from(inst.rs1 & 31)];
            let flow = exec(&inst, hart, window);
            store.into_iter().for_each(|store| recorder.stored(store));
            match flow {
                Ok(Flow::Next) => {}
                Ok(Flow::Jump) => return End::Next,
                Ok(Flow::FenceI) => return End::FenceI,
                Err(_) => return End::Trap,
            }
            // A store into the block itself: the next instructions may have changed.
            if inst.op.stores() && self.is_overwritten(inst.address(base), inst.op.stored_bytes()) {
                return End::Next;
            }
        }
        End::Next
    }
}
