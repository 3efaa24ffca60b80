//! A statement without its values: what is the same but for those is one statement, and no value is kept.

/// The longest statement, bytes. What is beyond is cut off.
pub const BYTES_MAX: usize = 240;

/// Of a statement, how many characters are asked of PostgreSQL.
pub const ASKED_CHARS: usize = 600;

/// `text` without values, comments and needless white space. A text that was cut off within a value loses it
/// too.
#[must_use]
pub fn normalise(text: &str) -> String {
    let mut scan = Scan { chars: text.chars().peekable(), out: String::new(), space: false };
    while scan.out.len() <= BYTES_MAX && scan.step() {}
    shortened(&scan.out, BYTES_MAX)
}

/// At most `bytes` of `text`, with a mark where it was cut. Nothing in it commands a terminal.
#[must_use]
pub fn shortened(text: &str, bytes: usize) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() <= bytes {
        return text;
    }
    let mut end = bytes.saturating_sub('…'.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

struct Scan<'a> {
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    out: String,
    /// White space or a comment came.
    space: bool,
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Scan<'_> {
    /// Takes one token; false at the end.
    fn step(&mut self) -> bool {
        let Some(c) = self.chars.next() else { return false };
        match c {
            c if c.is_whitespace() => self.space = true,
            '-' if self.chars.peek() == Some(&'-') => {
                while self.chars.next().is_some_and(|c| c != '\n') {}
                self.space = true;
            }
            '/' if self.chars.peek() == Some(&'*') => self.comment(),
            '\'' => {
                // E'it\'s': what begins it is a name of one letter.
                let escapes = self.prefixed(&['E', 'e']);
                self.quoted(escapes);
                if escapes || self.prefixed(&['B', 'b', 'X', 'x', 'N', 'n']) {
                    self.out.pop();
                }
                self.value();
            }
            '"' => {
                self.put('"');
                for c in self.chars.by_ref() {
                    self.out.push(c);
                    if c == '"' || self.out.len() > BYTES_MAX {
                        break;
                    }
                }
            }
            '$' => self.dollar(),
            c if c.is_ascii_digit() => {
                self.number();
                self.value();
            }
            c if is_name(c) => {
                self.put(c);
                while let Some(c) = self.chars.next_if(|c| is_name(*c) || *c == '$') {
                    self.out.push(c);
                }
            }
            ')' if self.out.ends_with("(?), (?") || self.out.ends_with("(?),(?") => {
                // The rows of a list of values are as good as one.
                let row = if self.out.ends_with("(?), (?") { "), (?" } else { "),(?" };
                self.out.truncate(self.out.len() - row.len());
                self.out.push(')');
                self.space = false;
            }
            c => self.put(c),
        }
        true
    }

    fn put(&mut self, c: char) {
        if std::mem::take(&mut self.space) && !self.out.is_empty() {
            self.out.push(' ');
        }
        self.out.push(c);
    }

    /// A value; of a list of them, the first stands for all.
    fn value(&mut self) {
        for list in ["?,", "?, "] {
            let listed = format!("{}{}", self.out, if self.space { " " } else { "" });
            if listed.ends_with(list) && (self.out.ends_with("?,") || self.out.ends_with("?, ")) {
                self.out.truncate(self.out.trim_end().len() - 1);
                self.space = false;
                return;
            }
        }
        self.put('?');
    }

    /// The text ends with one of these letters, which is no part of a longer name.
    fn prefixed(&self, letters: &[char]) -> bool {
        let mut back = self.out.chars().rev();
        !self.space && back.next().is_some_and(|c| letters.contains(&c)) && !back.next().is_some_and(is_name)
    }

    fn comment(&mut self) {
        let (mut depth, mut before) = (1_u32, ' ');
        self.chars.next();
        while depth > 0 {
            let Some(c) = self.chars.next() else { break };
            match (before, c) {
                ('/', '*') => (depth, before) = (depth.saturating_add(1), ' '),
                ('*', '/') => (depth, before) = (depth - 1, ' '),
                _ => before = c,
            }
        }
        self.space = true;
    }

    fn quoted(&mut self, escapes: bool) {
        while let Some(c) = self.chars.next() {
            match c {
                '\\' if escapes => drop(self.chars.next()),
                '\'' if self.chars.next_if_eq(&'\'').is_none() => return,
                _ => {}
            }
        }
    }

    /// A parameter, a text between dollars, or a dollar.
    fn dollar(&mut self) {
        if self.chars.next_if(char::is_ascii_digit).is_some() {
            while self.chars.next_if(char::is_ascii_digit).is_some() {}
            return self.value();
        }
        let mut tag = String::from("$");
        while let Some(c) = self.chars.next_if(|c| is_name(*c)) {
            tag.push(c);
        }
        if self.chars.next_if_eq(&'$').is_none() {
            tag.chars().for_each(|c| self.put(c));
            return;
        }
        tag.push('$');
        let mut body = String::new();
        for c in self.chars.by_ref() {
            body.push(c);
            if c == '$' && body.ends_with(&tag) {
                break;
            }
        }
        self.value();
    }

    fn number(&mut self) {
        let mut before = '0';
        while let Some(c) = self
            .chars
            .next_if(|c| is_name(*c) || *c == '.' || (matches!(before, 'e' | 'E') && matches!(c, '+' | '-')))
        {
            before = c;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_go_and_the_shape_stays() {
        for (text, shape) in [
            ("SELECT  pg_sleep(3600)", "SELECT pg_sleep(?)"),
            ("select * from t1 where a = 'it''s' and b=1.5e-3", "select * from t1 where a = ? and b=?"),
            ("UPDATE t SET a = $1 WHERE id = $22", "UPDATE t SET a = ? WHERE id = ?"),
            ("SELECT 1 -- why\n /* and /* how */ */ + 2", "SELECT ? + ?"),
            ("SELECT E'a\\'b', x'ff', U&\"d\"", "SELECT ?, U&\"d\""),
            ("SELECT * FROM \"T 1\" WHERE a IN (1, 2,3)", "SELECT * FROM \"T 1\" WHERE a IN (?)"),
            ("INSERT INTO t VALUES (1, 'a'), (2, 'b'),(3,'c')", "INSERT INTO t VALUES (?)"),
            ("DO $x$ BEGIN 'secret'; END $x$", "DO ?"),
            ("ALTER ROLE a PASSWORD 'sec", "ALTER ROLE a PASSWORD ?"),
            ("SELECT a$b, $$x$$, '1'::int", "SELECT a$b, ?::int"),
            ("", ""),
        ] {
            assert_eq!(normalise(text), shape, "{text}");
        }
        let long = normalise(&format!("SELECT {}", "column, ".repeat(200)));
        assert!(long.len() <= BYTES_MAX && long.ends_with('…'), "{long}");
    }

    proptest! {
        #[test]
        fn any_text_has_a_shape_without_its_values(
            text in ".{0,400}",
            parts in proptest::collection::vec("['\"$a1/*(),E -]{0,8}", 0..40),
        ) {
            for text in [text, parts.concat()] {
                let shape = normalise(&text);
                prop_assert!(shape.len() <= BYTES_MAX);
                prop_assert!(!shape.chars().any(char::is_control));
            }
        }

        #[test]
        fn no_text_between_quotes_is_kept(secret in "[a-z]{9}", cut in 0..20_usize) {
            let text = format!("ALTER ROLE r PASSWORD '{secret}' VALID");
            let text = &text[..text.len() - cut];
            prop_assert!(!normalise(text).contains(&secret[..4]));
        }
    }
}
