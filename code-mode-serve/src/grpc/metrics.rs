//! Figures of this process and of its workers, which a client sees as one host.

use code_mode_host::Provider;
use tonic::Status;

use super::wire::GetProcessMetricsResponse;

/// Reads them from `/proc`.
#[cfg(target_os = "linux")]
pub(super) fn process(provider: &Provider) -> Result<GetProcessMetricsResponse, Status> {
    let unavailable = |_| Status::unavailable("process metrics cannot be read");
    let stat = std::fs::read_to_string("/proc/self/stat").map_err(unavailable)?;
    let system = std::fs::read_to_string("/proc/stat").map_err(unavailable)?;
    let booted: f64 = system
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        .unwrap_or(0.0);
    // What stands behind the name, which may have spaces.
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .collect();
    let number = |place: usize| -> f64 {
        let field = fields.get(place).and_then(|field| field.parse().ok());
        field.unwrap_or(0.0)
    };
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let page = rustix::param::page_size() as f64;
    Ok(GetProcessMetricsResponse {
        process_id: std::process::id(),
        process_start_time_seconds: booted + number(19) / ticks,
        // Behind its own are those of children that have ended.
        cpu_seconds_total: (11..=14).map(number).sum::<f64>() / ticks
            + provider.worker_processor_time().as_secs_f64(),
        resident_memory_bytes: (number(21) * page) as u64 + provider.worker_memory(),
    })
}

/// Where there is no `/proc`.
#[cfg(not(target_os = "linux"))]
pub(super) fn process(_: &Provider) -> Result<GetProcessMetricsResponse, Status> {
    Err(Status::unimplemented("process metrics are unsupported"))
}
