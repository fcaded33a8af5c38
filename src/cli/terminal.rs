//! What is printed for people, in lines as wide as their terminal. Files and pipes get it as it is.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use terminal_size::terminal_size_of;

use crate::sys::mount::NAME;

/// What is narrower is taken for a terminal that does not tell its width.
const NARROWEST: usize = 20;
/// How far lines after the first are moved to the right.
const INDENT: usize = 4;

/// Tells people something that is no answer.
pub fn say(what: impl fmt::Display) {
    let text = format!("{NAME}: {what}");
    eprintln!("{}", wrapped(&text, width_of(io::stderr())));
}

/// The width of a terminal; None of anything else.
pub fn width_of(terminal: impl AsFd) -> Option<usize> {
    let (width, _) = terminal_size_of(terminal)?;
    let width = usize::from(width.0);
    (width >= NARROWEST).then_some(width)
}

/// The text with lines of this width, broken where there are spaces. A longer word keeps a line of its own.
pub fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else {
        return text.to_owned();
    };
    let lines = text.split('\n').map(|line| wrapped_line(line, width));
    lines.collect::<Vec<_>>().join("\n")
}

fn wrapped_line(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let begin = line.len() - line.trim_start().len();
    // Of a column that fills half of the line no more lines fit beside it.
    let indent = " ".repeat((begin + INDENT).min(width / 2));
    let (mut out, mut used, mut empty) = (String::new(), 0, true);
    // A space is part of the word before it, so that columns stay.
    for word in line.split_inclusive(' ') {
        let long = word.trim_end().chars().count();
        if !empty && long > 0 && used + long > width {
            out.truncate(out.trim_end().len());
            out.push('\n');
            out.push_str(&indent);
            (used, empty) = (indent.len(), true);
        }
        empty &= long == 0;
        out.push_str(word);
        used += word.chars().count();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_where_there_are_spaces() {
        let text = "cvmfs-union: mount: the upper is in use\n  /a/b: a dead mount of a type";
        assert_eq!(wrapped(text, None), text);
        assert_eq!(
            wrapped(text, Some(24)),
            "cvmfs-union: mount: the\n    upper is in use\n  /a/b: a dead mount of\n      a type"
        );
        assert_eq!(wrapped("a  b   c", Some(24)), "a  b   c");
        let long = "/a/directory/of/a/long/name";
        assert_eq!(
            wrapped(&format!("in {long} it is"), Some(20)),
            format!("in\n    {long}\n    it is")
        );
        let columns = format!("{:<30}why it is not so", "");
        assert_eq!(wrapped(&columns, Some(40)).lines().count(), 2);
    }
}
