//! A record's description of the machine: enough for comparisons, but nothing that identifies the
//! machine.

use std::fs;
use std::process::Command;

/// CPU, kernel, settings and date.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Model name and how many of them this process sees.
    pub cpu: String,
    /// Whether a hypervisor is below.
    pub virtual_machine: bool,
    /// Kernel release and architecture.
    pub kernel: String,
    /// Transparent huge pages.
    pub huge_pages: String,
    /// `vm.max_map_count`.
    pub max_map_count: String,
    /// UTC, `2026-01-31`.
    pub date: String,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            line.split_once(':').map(|(_, value)| value.trim().to_string())
        };
        let cpus = std::thread::available_parallelism().map_or(0, usize::from);
        let model = field("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
        let huge = read("/sys/kernel/mm/transparent_hugepage/enabled");
        let huge = huge.split(['[', ']']).nth(1).unwrap_or("unknown").to_string();
        Self {
            cpu: format!("{model}, {cpus} CPUs"),
            virtual_machine: field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: format!("Linux {} {}", release(&read("/proc/sys/kernel/osrelease")), std::env::consts::ARCH),
            huge_pages: huge,
            max_map_count: read("/proc/sys/vm/max_map_count"),
            date: output("date", &["-u", "+%F"]),
        }
    }

    /// As lines of a markdown list.
    pub fn markdown(&self) -> String {
        let Self { cpu, virtual_machine, kernel, huge_pages, max_map_count, date } = self;
        let place = if *virtual_machine { " (virtual machine)" } else { "" };
        format!(
            "- date: {date}\n- CPU: {cpu}{place}\n- kernel: {kernel}\n- transparent huge pages: \
             {huge_pages}; vm.max_map_count: {max_map_count}\n"
        )
    }
}

/// The numbers of a release, without its builder's suffix.
fn release(full: &str) -> &str {
    full.split('-').next().unwrap_or(full)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

fn output(program: &str, arguments: &[&str]) -> String {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().into(),
        _ => "unknown".into(),
    }
}
