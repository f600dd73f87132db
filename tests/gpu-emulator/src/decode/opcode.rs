//! An opcode and its modifiers. Each modifier has to be asked for: one that nobody knew is an error.

use std::cell::Cell;

use crate::exec::op::{Mode, Round};
use crate::ptx::{Scalar, Space};

pub struct Opcode<'a> {
    pub name: &'a str,
    modifiers: Vec<(&'a str, Cell<bool>)>,
    /// The types among them, in order.
    pub types: Vec<Scalar>,
}

impl<'a> Opcode<'a> {
    pub fn new(parts: &'a [String]) -> Self {
        let words = parts[1..].iter().map(String::as_str);
        let modifiers = words.clone().map(|word| (word, Cell::new(Scalar::from_name(word).is_some()))).collect();
        Opcode { name: &parts[0], modifiers, types: words.filter_map(Scalar::from_name).collect() }
    }

    pub fn has(&self, word: &str) -> bool {
        let found = self.modifiers.iter().find(|(modifier, _)| *modifier == word);
        found.map(|(_, used)| used.set(true)).is_some()
    }

    /// Which of the words is there.
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        words.iter().find(|(word, _)| self.has(word)).map(|(_, value)| *value)
    }

    /// These mean nothing here.
    pub fn ignore(&self, words: &[&str]) {
        for word in words {
            self.has(word);
        }
    }

    pub fn type_(&self) -> Result<Scalar, String> {
        self.types.first().copied().ok_or_else(|| "no type".to_string())
    }

    pub fn space(&self) -> Space {
        self.modifiers
            .iter()
            .find_map(|(word, used)| Space::from_name(word).inspect(|_| used.set(true)))
            .unwrap_or(Space::Generic)
    }

    pub fn mode(&self) -> Mode {
        let rounds = [
            ("rn", Round::Nearest),
            ("rz", Round::Zero),
            ("rm", Round::Down),
            ("rp", Round::Up),
            ("rni", Round::Nearest),
            ("rzi", Round::Zero),
            ("rmi", Round::Down),
            ("rpi", Round::Up),
        ];
        Mode {
            round: self.one_of(&rounds).unwrap_or(Round::Nearest),
            flush: self.has("ftz"),
            saturate: self.has("sat"),
            relu: self.has("relu"),
        }
    }

    /// A modifier that nothing has asked for.
    pub fn unused(&self) -> Option<&'a str> {
        self.modifiers.iter().find(|(_, used)| !used.get()).map(|(word, _)| *word)
    }
}
