//! The format of text for people: colours only on a terminal, at most 100 columns.

use std::io::{self, IsTerminal, Write};

const COLUMNS: usize = 100;
/// Columns of a verb and its margin.
const MARGIN: usize = 16;
const VERB: usize = 12;

/// Whether text has colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    colours: bool,
}

impl Style {
    /// Colours if standard output is a terminal and `NO_COLOR` is not set.
    pub fn of_stdout() -> Self {
        let spared = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { colours: io::stdout().is_terminal() && !spared }
    }

    fn coloured(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub fn strong(self, text: &str) -> String {
        self.coloured("1", text)
    }

    /// A verb in its column.
    pub fn verb(self, verb: &str) -> String {
        let code = match verb {
            "protect" => "32",
            "translate" | "retranslate" => "36",
            "write" => "33",
            "invalidate" => "31",
            _ => "2",
        };
        self.coloured(code, &format!("{verb:<VERB$}"))
    }
}

/// Writes to standard output at once, because the guest's own writes come between.
pub fn say(text: &str) {
    let mut out = io::stdout().lock();
    // If the reader has gone away, the guest will notice.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// `text` in lines of at most 100 columns.
pub(crate) fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        if column > 0 && column + 1 + len > COLUMNS {
            lines.push('\n');
            column = 0;
        } else if column > 0 {
            lines.push(' ');
            column += 1;
        }
        lines.push_str(word);
        column += len;
    }
    lines.push('\n');
    lines
}

/// `names` after `head`, which fills the margin.
pub fn listed(head: &str, names: &[String]) -> String {
    let mut text = head.to_owned();
    let mut column = MARGIN;
    for (index, name) in names.iter().enumerate() {
        let name = if index + 1 < names.len() { format!("{name}, ") } else { name.clone() };
        if column > MARGIN && column + name.trim_end().len() > COLUMNS {
            text.truncate(text.trim_end().len());
            text.push('\n');
            text.push_str(&" ".repeat(MARGIN));
            column = MARGIN;
        }
        column += name.len();
        text.push_str(&name);
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_within_the_columns() {
        let names: Vec<_> = (0..40).map(|n| format!("function_{n} (compiled)")).collect();
        let text = listed(&" ".repeat(MARGIN), &names) + &wrapped(&"word ".repeat(100));
        assert!(text.lines().all(|line| line.len() <= COLUMNS && line.trim_end() == line), "{text}");
        assert!(names.iter().all(|name| text.contains(name.as_str())));
    }

    #[test]
    fn without_colours_there_is_no_escape() {
        let plain = Style { colours: false };
        assert_eq!(plain.verb("write"), "write       ");
        assert!(Style { colours: true }.strong("x").contains('\x1b'));
    }
}
