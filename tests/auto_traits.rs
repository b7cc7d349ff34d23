//! The public types that may go to another thread, and those that may be shared.

use std::error::Error as StdError;

use codewarden::code_buffer::{Allocation, CodeBuffer, CodeBufferStats};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Adaptive, Plain};
use codewarden::protection::Probe;
use codewarden::tracker::{BeginError, Held, MappingChange, PageClaim, PageDataRef, PageGeneration, Tracker};
use codewarden::{
    Busy, CodeCache, CommitError, Entry, EntryCell, Footprint, Histograms, Key, Link, RecentWrite, StaleFlag, Stats,
    Ticket, TranslateError, VCpu,
};

fn goes<T: Send>() {}
fn is_shared<T: Send + Sync>() {}
fn is_error<T: StdError + Send + Sync + 'static>() {}

#[test]
fn what_goes_to_another_thread() {
    // A translation may be begun on one thread and compiled on another.
    goes::<Ticket<Allocation>>();
    goes::<PageClaim<PageGeneration>>();
    goes::<VCpu<Allocation>>();
    goes::<Held>();
    goes::<MappingChange>();
}

#[test]
fn what_threads_share() {
    is_shared::<CodeCache<Allocation>>();
    is_shared::<Tracker<PageGeneration>>();
    is_shared::<PageDataRef<PageGeneration>>();
    is_shared::<(CodeBuffer, Allocation, CodeBufferStats)>();
    is_shared::<GuestMemory>();
    is_shared::<(Link, EntryCell, StaleFlag, Entry, Key)>();
    is_shared::<(Adaptive, Plain, Probe)>();
    is_shared::<(Stats, Histograms, Footprint, RecentWrite)>();
}

#[test]
fn what_is_an_error() {
    is_error::<Error>();
    is_error::<BeginError>();
    is_error::<Busy>();
    is_error::<CommitError>();
    is_error::<TranslateError>();
}
