//! The guest's system calls of riscv64 Linux, by number. All others answer ENOSYS, and programs
//! fall back: clone3, rseq, openat2, io_uring, aio, process_vm_readv, process_vm_writev, recvmmsg,
//! sendmmsg and vmsplice among them.

use super::spec::Arg::{
    Address as A, Dir as D, Hex as X, In, InLen, Int as I, Octal as O, Out, OutLen, OutLenAt, Path as P, Text as T,
};
use super::spec::Handler::{Host, Own};
use super::spec::Spec;
use super::{
    descriptors, epoll, file, file_change, ids, memory, net, process, signals, status, system_info, threads, time,
    transfer, wait,
};

macro_rules! table {
    ($($number:literal $name:ident $handler:expr, [$($arg:expr),*];)*) => {
        &[$(Spec { number: $number, name: stringify!($name), handler: $handler, args: &[$($arg),*] }),*]
    };
}

/// Sorted by number.
#[rustfmt::skip]
pub(super) static TABLE: &[Spec] = table! {
    5 setxattr Host(libc::SYS_setxattr), [P, T, InLen(3), I, X];
    6 lsetxattr Host(libc::SYS_lsetxattr), [P, T, InLen(3), I, X];
    7 fsetxattr Host(libc::SYS_fsetxattr), [I, T, InLen(3), I, X];
    8 getxattr Host(libc::SYS_getxattr), [P, T, OutLen(3), I];
    9 lgetxattr Host(libc::SYS_lgetxattr), [P, T, OutLen(3), I];
    10 fgetxattr Host(libc::SYS_fgetxattr), [I, T, OutLen(3), I];
    11 listxattr Host(libc::SYS_listxattr), [P, OutLen(2), I];
    12 llistxattr Host(libc::SYS_llistxattr), [P, OutLen(2), I];
    13 flistxattr Host(libc::SYS_flistxattr), [I, OutLen(2), I];
    14 removexattr Host(libc::SYS_removexattr), [P, T];
    15 lremovexattr Host(libc::SYS_lremovexattr), [P, T];
    16 fremovexattr Host(libc::SYS_fremovexattr), [I, T];
    17 getcwd Host(libc::SYS_getcwd), [OutLen(1), I];
    19 eventfd2 Host(libc::SYS_eventfd2), [I, X];
    20 epoll_create1 Host(libc::SYS_epoll_create1), [X];
    21 epoll_ctl Own(epoll::control), [I, I, I, A];
    22 epoll_pwait Own(epoll::wait), [I, A, I, I, A, I];
    23 dup Host(libc::SYS_dup), [I];
    24 dup3 Own(descriptors::duplicate), [I, I, X];
    25 fcntl Own(file::control), [I, I, X];
    26 inotify_init1 Host(libc::SYS_inotify_init1), [X];
    27 inotify_add_watch Host(libc::SYS_inotify_add_watch), [I, P, X];
    28 inotify_rm_watch Host(libc::SYS_inotify_rm_watch), [I, I];
    29 ioctl Own(file::device_control), [I, X, X];
    32 flock Host(libc::SYS_flock), [I, I];
    33 mknodat Host(libc::SYS_mknodat), [D, P, O, X];
    34 mkdirat Host(libc::SYS_mkdirat), [D, P, O];
    35 unlinkat Host(libc::SYS_unlinkat), [D, P, X];
    36 symlinkat Host(libc::SYS_symlinkat), [T, D, P];
    37 linkat Host(libc::SYS_linkat), [D, P, D, P, X];
    43 statfs Host(libc::SYS_statfs), [P, Out(120)];
    44 fstatfs Host(libc::SYS_fstatfs), [I, Out(120)];
    45 truncate Own(file_change::resize_path), [P, I];
    46 ftruncate Own(file_change::resize), [I, I];
    47 fallocate Own(file_change::allocate), [I, X, I, I];
    48 faccessat Host(libc::SYS_faccessat), [D, P, O];
    49 chdir Host(libc::SYS_chdir), [P];
    50 fchdir Host(libc::SYS_fchdir), [I];
    52 fchmod Host(libc::SYS_fchmod), [I, O];
    53 fchmodat Host(libc::SYS_fchmodat), [D, P, O];
    54 fchownat Host(libc::SYS_fchownat), [D, P, I, I, X];
    55 fchown Host(libc::SYS_fchown), [I, I, I];
    56 openat Own(file::open), [D, P, X, O];
    57 close Own(descriptors::close), [I];
    59 pipe2 Host(libc::SYS_pipe2), [Out(8), X];
    61 getdents64 Host(libc::SYS_getdents64), [I, OutLen(2), I];
    62 lseek Host(libc::SYS_lseek), [I, I, I];
    63 read Own(transfer::read), [I, OutLen(2), I];
    64 write Own(transfer::write), [I, InLen(2), I];
    65 readv Own(transfer::read_vector), [I, A, I];
    66 writev Own(transfer::write_vector), [I, A, I];
    67 pread64 Own(transfer::read_at), [I, OutLen(2), I, I];
    68 pwrite64 Own(transfer::write_at), [I, InLen(2), I, I];
    69 preadv Own(transfer::read_vector_at), [I, A, I, I, I];
    70 pwritev Own(transfer::write_vector_at), [I, A, I, I, I];
    71 sendfile Own(file_change::send), [I, I, Out(8), I];
    72 pselect6 Own(wait::select), [I, A, A, A, A, A];
    73 ppoll Own(wait::poll), [A, I, A, A, I];
    74 signalfd4 Host(libc::SYS_signalfd4), [I, In(8), I, X];
    76 splice Own(file_change::splice), [I, Out(8), I, Out(8), I, X];
    77 tee Host(libc::SYS_tee), [I, I, I, X];
    78 readlinkat Own(file::read_link), [D, P, A, I];
    79 newfstatat Own(status::stat_at), [D, P, A, X];
    80 fstat Own(status::stat_descriptor), [I, A];
    81 sync Host(libc::SYS_sync), [];
    82 fsync Host(libc::SYS_fsync), [I];
    83 fdatasync Host(libc::SYS_fdatasync), [I];
    84 sync_file_range Host(libc::SYS_sync_file_range), [I, I, I, X];
    85 timerfd_create Host(libc::SYS_timerfd_create), [I, X];
    86 timerfd_settime Host(libc::SYS_timerfd_settime), [I, X, In(32), Out(32)];
    87 timerfd_gettime Host(libc::SYS_timerfd_gettime), [I, Out(32)];
    88 utimensat Host(libc::SYS_utimensat), [D, P, In(32), X];
    90 capget Host(libc::SYS_capget), [Out(8), Out(24)];
    92 personality Own(system_info::personality), [X];
    93 exit Own(process::exit), [I];
    94 exit_group Own(process::exit_group), [I];
    95 waitid Host(libc::SYS_waitid), [I, I, Out(128), X, Out(144)];
    96 set_tid_address Own(threads::set_tid_address), [A];
    98 futex Own(threads::futex), [A, X, I, A, A, X];
    99 set_robust_list Own(threads::set_robust_list), [A, I];
    100 get_robust_list Own(threads::get_robust_list), [I, A, A];
    101 nanosleep Host(libc::SYS_nanosleep), [In(16), Out(16)];
    102 getitimer Host(libc::SYS_getitimer), [I, Out(32)];
    103 setitimer Host(libc::SYS_setitimer), [I, In(32), Out(32)];
    107 timer_create Host(libc::SYS_timer_create), [I, In(64), Out(4)];
    108 timer_gettime Host(libc::SYS_timer_gettime), [I, Out(32)];
    109 timer_getoverrun Host(libc::SYS_timer_getoverrun), [I];
    110 timer_settime Host(libc::SYS_timer_settime), [I, X, In(32), Out(32)];
    111 timer_delete Host(libc::SYS_timer_delete), [I];
    112 clock_settime Host(libc::SYS_clock_settime), [I, In(16)];
    113 clock_gettime Own(time::clock_gettime), [I, A];
    114 clock_getres Host(libc::SYS_clock_getres), [I, Out(16)];
    115 clock_nanosleep Host(libc::SYS_clock_nanosleep), [I, X, In(16), Out(16)];
    118 sched_setparam Host(libc::SYS_sched_setparam), [I, In(4)];
    119 sched_setscheduler Host(libc::SYS_sched_setscheduler), [I, I, In(4)];
    120 sched_getscheduler Host(libc::SYS_sched_getscheduler), [I];
    121 sched_getparam Host(libc::SYS_sched_getparam), [I, Out(4)];
    122 sched_setaffinity Host(libc::SYS_sched_setaffinity), [I, I, InLen(1)];
    123 sched_getaffinity Host(libc::SYS_sched_getaffinity), [I, I, OutLen(1)];
    124 sched_yield Host(libc::SYS_sched_yield), [];
    125 sched_get_priority_max Host(libc::SYS_sched_get_priority_max), [I];
    126 sched_get_priority_min Host(libc::SYS_sched_get_priority_min), [I];
    127 sched_rr_get_interval Host(libc::SYS_sched_rr_get_interval), [I, Out(16)];
    129 kill Own(signals::kill), [I, I];
    130 tkill Own(signals::kill_thread), [I, I];
    131 tgkill Own(signals::kill_thread_of), [I, I, I];
    132 sigaltstack Own(signals::alternate_stack), [A, A];
    133 rt_sigsuspend Own(signals::suspend), [A, I];
    134 rt_sigaction Own(signals::action), [I, A, A, I];
    135 rt_sigprocmask Own(signals::mask), [I, A, A, I];
    136 rt_sigpending Own(signals::pending), [A, I];
    137 rt_sigtimedwait Host(libc::SYS_rt_sigtimedwait), [In(8), Out(128), In(16), I];
    138 rt_sigqueueinfo Host(libc::SYS_rt_sigqueueinfo), [I, I, In(128)];
    139 rt_sigreturn Own(signals::return_from_handler), [];
    140 setpriority Host(libc::SYS_setpriority), [I, I, I];
    141 getpriority Host(libc::SYS_getpriority), [I, I];
    143 setregid Host(libc::SYS_setregid), [I, I];
    144 setgid Host(libc::SYS_setgid), [I];
    145 setreuid Host(libc::SYS_setreuid), [I, I];
    146 setuid Host(libc::SYS_setuid), [I];
    147 setresuid Host(libc::SYS_setresuid), [I, I, I];
    148 getresuid Host(libc::SYS_getresuid), [Out(4), Out(4), Out(4)];
    149 setresgid Host(libc::SYS_setresgid), [I, I, I];
    150 getresgid Host(libc::SYS_getresgid), [Out(4), Out(4), Out(4)];
    151 setfsuid Host(libc::SYS_setfsuid), [I];
    152 setfsgid Host(libc::SYS_setfsgid), [I];
    153 times Host(libc::SYS_times), [Out(32)];
    154 setpgid Host(libc::SYS_setpgid), [I, I];
    155 getpgid Host(libc::SYS_getpgid), [I];
    156 getsid Host(libc::SYS_getsid), [I];
    157 setsid Host(libc::SYS_setsid), [];
    158 getgroups Own(ids::get_groups), [I, A];
    159 setgroups Own(ids::set_groups), [I, A];
    160 uname Own(system_info::uname), [A];
    163 getrlimit Own(process::get_limit), [I, A];
    164 setrlimit Own(process::set_limit), [I, A];
    165 getrusage Host(libc::SYS_getrusage), [I, Out(144)];
    166 umask Host(libc::SYS_umask), [O];
    167 prctl Own(process::control), [I, X, X, X, X];
    168 getcpu Host(libc::SYS_getcpu), [Out(4), Out(4)];
    169 gettimeofday Own(time::gettimeofday), [A, A];
    172 getpid Host(libc::SYS_getpid), [];
    173 getppid Host(libc::SYS_getppid), [];
    174 getuid Host(libc::SYS_getuid), [];
    175 geteuid Host(libc::SYS_geteuid), [];
    176 getgid Host(libc::SYS_getgid), [];
    177 getegid Host(libc::SYS_getegid), [];
    178 gettid Host(libc::SYS_gettid), [];
    179 sysinfo Host(libc::SYS_sysinfo), [Out(112)];
    198 socket Host(libc::SYS_socket), [I, X, I];
    199 socketpair Host(libc::SYS_socketpair), [I, X, I, Out(8)];
    200 bind Host(libc::SYS_bind), [I, InLen(2), I];
    201 listen Host(libc::SYS_listen), [I, I];
    202 accept Host(libc::SYS_accept), [I, OutLenAt(2), Out(4)];
    203 connect Host(libc::SYS_connect), [I, InLen(2), I];
    204 getsockname Host(libc::SYS_getsockname), [I, OutLenAt(2), Out(4)];
    205 getpeername Host(libc::SYS_getpeername), [I, OutLenAt(2), Out(4)];
    206 sendto Host(libc::SYS_sendto), [I, InLen(2), I, X, InLen(5), I];
    207 recvfrom Host(libc::SYS_recvfrom), [I, OutLen(2), I, X, OutLenAt(5), Out(4)];
    208 setsockopt Host(libc::SYS_setsockopt), [I, I, I, InLen(4), I];
    209 getsockopt Host(libc::SYS_getsockopt), [I, I, I, OutLenAt(4), Out(4)];
    210 shutdown Host(libc::SYS_shutdown), [I, I];
    211 sendmsg Own(net::send_message), [I, A, X];
    212 recvmsg Own(net::receive_message), [I, A, X];
    213 readahead Host(libc::SYS_readahead), [I, I, I];
    214 brk Own(memory::brk), [A];
    215 munmap Own(memory::unmap), [A, X];
    216 mremap Own(memory::remap), [A, X, X, X, A];
    220 clone Own(threads::clone), [X, A, A, A, A];
    221 execve Own(process::execute), [P, A, A];
    222 mmap Own(memory::map), [A, X, X, X, I, X];
    223 fadvise64 Host(libc::SYS_fadvise64), [I, I, I, I];
    226 mprotect Own(memory::protect), [A, X, X];
    227 msync Host(libc::SYS_msync), [InLen(1), I, X];
    228 mlock Own(memory::lock), [A, X];
    229 munlock Own(memory::lock), [A, X];
    230 mlockall Own(memory::lock), [X];
    231 munlockall Own(memory::lock), [];
    232 mincore Own(memory::residency), [A, X, A];
    233 madvise Own(memory::advise), [A, X, I];
    242 accept4 Host(libc::SYS_accept4), [I, OutLenAt(2), Out(4), X];
    258 riscv_hwprobe Own(system_info::hwprobe), [A, I, I, A, X];
    259 riscv_flush_icache Own(memory::flush_icache), [A, A, X];
    260 wait4 Host(libc::SYS_wait4), [I, Out(4), X, Out(144)];
    261 prlimit64 Own(process::limit), [I, I, A, A];
    276 renameat2 Host(libc::SYS_renameat2), [D, P, D, P, X];
    278 getrandom Host(libc::SYS_getrandom), [OutLen(1), I, X];
    279 memfd_create Host(libc::SYS_memfd_create), [T, X];
    281 execveat Own(process::execute_at), [D, P, A, A, X];
    283 membarrier Host(libc::SYS_membarrier), [I, X, I];
    285 copy_file_range Own(file_change::copy), [I, Out(8), I, Out(8), I, X];
    286 preadv2 Own(transfer::read_vector_at), [I, A, I, I, I, X];
    287 pwritev2 Own(transfer::write_vector_at), [I, A, I, I, I, X];
    291 statx Host(libc::SYS_statx), [D, P, X, X, Out(256)];
    424 pidfd_send_signal Host(libc::SYS_pidfd_send_signal), [I, I, In(128), X];
    434 pidfd_open Host(libc::SYS_pidfd_open), [I, X];
    436 close_range Own(descriptors::close_range), [I, I, X];
    439 faccessat2 Host(libc::SYS_faccessat2), [D, P, O, X];
};

/// The call of that number.
pub(super) fn find(number: u64) -> Option<&'static Spec> {
    let index = TABLE.binary_search_by_key(&number, |spec| u64::from(spec.number)).ok()?;
    TABLE.get(index)
}

#[cfg(test)]
mod tests {
    use super::super::spec::Arg;
    use super::*;

    #[test]
    fn numbers_ascend() {
        assert!(TABLE.windows(2).all(|pair| pair[0].number < pair[1].number));
    }

    #[test]
    fn lengths_are_other_arguments_of_the_call() {
        for spec in TABLE {
            for arg in spec.args {
                if let Arg::InLen(of) | Arg::OutLen(of) = arg {
                    assert_eq!(spec.args.get(usize::from(*of)), Some(&Arg::Int), "{}", spec.name);
                }
                if let Arg::OutLenAt(of) = arg {
                    assert_eq!(spec.args.get(usize::from(*of)), Some(&Arg::Out(4)), "{}", spec.name);
                }
            }
        }
    }
}
