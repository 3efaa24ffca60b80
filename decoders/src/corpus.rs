//! What is kept of what fuzzing found: for each target the inputs that reach different parts of it, in one
//! file of text.
//!
//! A line is an input: the first half of its SHA-256, a space, and its bytes, those that do not print as
//! `\x00`. Lines are in the order of their hashes. `scripts/corpora.sh` writes the files anew.

use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};

/// The inputs of a file.
///
/// # Errors
/// The first line that is none, and why.
pub fn parse(text: &str) -> Result<Vec<Vec<u8>>, String> {
    text.lines()
        .enumerate()
        .map(|(at, line)| input(line).map_err(|why| format!("line {}: {why}", at + 1)))
        .collect()
}

fn input(line: &str) -> Result<Vec<u8>, String> {
    let (name, shown) = line.split_once(' ').ok_or("it has no hash before its bytes")?;
    let mut bytes = Vec::with_capacity(shown.len());
    let mut rest = shown.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        let (kind, behind) = rest.split_first().ok_or("it ends in a backslash")?;
        rest = behind;
        match kind {
            b'n' => bytes.push(b'\n'),
            b'\\' => bytes.push(b'\\'),
            b'x' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                bytes.push(byte.ok_or("no two digits follow \\x")?);
                rest = &rest[2..];
            }
            other => return Err(format!("\\{} is not known", other.escape_ascii())),
        }
    }
    match name == self::name(&bytes) {
        true => Ok(bytes),
        false => Err(format!("the hash of it is {}", self::name(&bytes))),
    }
}

/// The file of these inputs, each once; without the empty one.
#[must_use]
pub fn text(inputs: &[Vec<u8>]) -> String {
    let mut lines: Vec<String> =
        inputs.iter().filter(|input| !input.is_empty()).map(|input| line(input)).collect();
    lines.sort_unstable();
    lines.dedup();
    lines.concat()
}

fn line(input: &[u8]) -> String {
    let mut line = format!("{} ", name(input));
    for byte in input {
        // A line that ends in white space is not kept as it is by every editor.
        let _ = match byte {
            b'\n' => line.write_str("\\n"),
            b'\\' => line.write_str("\\\\"),
            b'!'..=b'~' => line.write_char(char::from(*byte)),
            b' ' if !line.ends_with(' ') => line.write_char(' '),
            _ => write!(line, "\\x{byte:02x}"),
        };
    }
    if let Some(open) = line.strip_suffix(' ') {
        line = format!("{open}\\x20");
    }
    line + "\n"
}

/// What an input is called: the first half of its SHA-256, in hexadecimal digits.
#[must_use]
pub fn name(input: &[u8]) -> String {
    digest(&SHA256, input).as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}
