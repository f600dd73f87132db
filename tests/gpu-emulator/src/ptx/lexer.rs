//! Tokens of PTX, each with its line.

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    /// Names, registers, opcodes and directives: the points of `ld.global.f32` and `%tid.x` belong to the word.
    Word(&'a str),
    /// Begins with a digit: `12`, `0x1F`, `0f3F800000`, `8.0`.
    Number(&'a str),
    Text(&'a str),
    Sign(char),
}

pub struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
}

fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

impl<'a> Lexer<'a> {
    pub fn new(source: &'a str) -> Self {
        Lexer { source, at: 0, line: 1 }
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let taken = &self.source[self.at..self.at + bytes];
        self.line += taken.matches('\n').count() as u32;
        self.at += bytes;
        taken
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            let bytes = if blank > 0 {
                blank
            } else if rest.starts_with("//") {
                rest.find('\n').unwrap_or(rest.len())
            } else if rest.starts_with("/*") {
                rest.find("*/").map_or(rest.len(), |end| end + 2)
            } else {
                return;
            };
            self.advance(bytes);
        }
    }

    /// The length of the word at the start of `rest`; `::` joins, as in `shared::cta`.
    fn word(rest: &str) -> usize {
        let mut end = 0;
        loop {
            end += rest[end..].find(|c| !in_word(c)).unwrap_or(rest.len() - end);
            match rest[end..].strip_prefix("::") {
                Some(more) if more.starts_with(in_word) => end += 2,
                _ => return end,
            }
        }
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = (u32, Token<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.skip();
        let rest = self.rest();
        let first = rest.chars().next()?;
        let line = self.line;
        let token = if first == '"' {
            let end = rest[1..].find('"').map_or(rest.len(), |end| end + 2);
            Token::Text(self.advance(end))
        } else if in_word(first) {
            let word = self.advance(Self::word(rest));
            if first.is_ascii_digit() { Token::Number(word) } else { Token::Word(word) }
        } else {
            self.advance(first.len_utf8());
            Token::Sign(first)
        };
        Some((line, token))
    }
}

/// The bits of a number: decimal, hexadecimal, or a float written as `0f` or `0d` and its bits.
pub fn number(text: &str) -> Option<u64> {
    let body = text.strip_suffix('U').unwrap_or(text);
    let digits = |prefixes: [&str; 2]| prefixes.iter().find_map(|p| text.strip_prefix(p));
    if let Some(bits) = digits(["0f", "0F"]) {
        u32::from_str_radix(bits, 16).ok().map(u64::from)
    } else if let Some(bits) = digits(["0d", "0D"]) {
        u64::from_str_radix(bits, 16).ok()
    } else if let Some(bits) = body.strip_prefix("0x").or(body.strip_prefix("0X")) {
        u64::from_str_radix(bits, 16).ok()
    } else {
        body.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_points_and_lines_are_counted() {
        let source = "// first\nld.shared::cta.u32 %r1, [%rd2+-4]; /* two\nlines */ $L:";
        let tokens: Vec<_> = Lexer::new(source).collect();
        let words = |line| -> Vec<_> {
            tokens.iter().filter(|t| t.0 == line).map(|t| t.1).filter(|t| !matches!(t, Token::Sign(_))).collect()
        };
        assert_eq!(
            words(2),
            [Token::Word("ld.shared::cta.u32"), Token::Word("%r1"), Token::Word("%rd2"), Token::Number("4")]
        );
        assert_eq!(words(3), [Token::Word("$L")]);
    }

    #[test]
    fn numbers() {
        assert_eq!(number("0f3F800000"), Some(0x3f80_0000));
        assert_eq!(number("0dBFF0000000000000"), Some(0xbff0_0000_0000_0000));
        assert_eq!(number("0xFFU"), Some(255));
        assert_eq!(number("18446744073709551615"), Some(u64::MAX));
        assert_eq!(number("18446744073709551616"), None);
        assert_eq!(number("0xg"), None);
    }
}
