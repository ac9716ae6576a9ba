//! What people see: logs, progress, figures.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tracing_subscriber::EnvFilter;

/// Prints a line on standard output at once, or fails: `println!` would panic when the reader is gone.
macro_rules! say {
    ($($words:tt)*) => {
        $crate::ui::say(format_args!($($words)*))
    };
}

/// Prints a line on standard error. If nobody reads it, that is no reason to end.
macro_rules! note {
    ($($words:tt)*) => {
        drop(std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($words)*))))
    };
}

pub(crate) fn say(words: fmt::Arguments<'_>) -> io::Result<()> {
    // Nobody else says something between two of its parts.
    let _locked = io::stdout().lock();
    let mut output = stdout();
    writeln!(output, "{words}")?;
    output.flush()
}

/// Standard output. An error that says that its reader is gone can be told from a broken connection.
pub(crate) fn stdout() -> Stdout {
    Stdout(io::stdout())
}

#[derive(Debug)]
pub(crate) struct Stdout(io::Stdout);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(reader_gone)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(reader_gone)
    }
}

#[derive(Debug)]
struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output")
    }
}

impl std::error::Error for ReaderGone {}

fn reader_gone(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => io::Error::new(io::ErrorKind::BrokenPipe, ReaderGone),
        _ => error,
    }
}

/// True if whoever reads standard output has enough of it.
pub(crate) fn is_reader_gone(error: &anyhow::Error) -> bool {
    let io_errors = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors.filter_map(io::Error::get_ref).any(<dyn std::error::Error + Send + Sync>::is::<ReaderGone>)
}

/// Words of several lines in one.
pub(crate) fn one_line(words: &str) -> String {
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Logs go to standard error, and are silent unless asked for.
pub(crate) fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "off",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("REPLIKV_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let plain = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
    let coloured = io::stderr().is_terminal() && !plain;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(coloured).with_writer(io::stderr).init();
}

/// A bar on standard error with rate and time left; nothing if that is no terminal.
pub(crate) fn bar(label: &'static str, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{msg:>14} [{bar:30}] {human_pos}/{human_len}  {per_sec}  {eta} left",
        None => "{msg:>14} {spinner} {human_pos}  {per_sec}  {elapsed}",
    };
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style.progress_chars("=> ")).with_message(label)
}

/// As [`bar`], of bytes.
pub(crate) fn bytes_bar(label: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>14} {spinner} {bytes}  {bytes_per_sec}  {elapsed}");
    bar(label, None).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// 1234567 as 1,234,567.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut words = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            words.push(',');
        }
        words.push(digit);
    }
    words
}

/// How many a second.
pub(crate) fn rate(count: u64, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// A rate without false precision.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rates are small and positive")]
pub(crate) fn rate_words(rate: f64) -> String {
    format!("{}/s", thousands(rate.round() as u64))
}

pub(crate) fn time_words(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2} s"),
        seconds => format!("{:.2} ms", seconds * 1e3),
    }
}

/// A key or a value for a terminal: text as it is but for backslashes, other bytes escaped.
pub(crate) fn printable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.replace('\\', r"\\"),
        _ => bytes.escape_ascii().to_string(),
    }
}

/// A table without lines, for figures.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(1_234_567), "1,234,567");
    }

    #[test]
    fn a_broken_connection_is_no_gone_reader() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_reader_gone(&anyhow::Error::new(reader_gone(pipe())).context("scanning")));
        assert!(!is_reader_gone(&anyhow::Error::new(pipe()).context("the master cannot be asked")));
    }

    #[test]
    fn what_could_move_the_cursor_is_escaped() {
        assert_eq!(printable("größe".as_bytes()), "größe");
        assert_eq!(printable(b"\x1b[2J"), "\\x1b[2J");
        assert_eq!(printable(&[0xFF]), "\\xff");
        assert_eq!(
            printable(br"\xff, gr\xC3\xB6\xC3\x9Fe"),
            r"\\xff, gr\\xC3\\xB6\\xC3\\x9Fe",
            "no byte looks like another"
        );
    }
}
