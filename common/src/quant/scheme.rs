//! What is quantized and how, in one word: `w4g128`, `w3pc`, `w2g64z`, `w3g64s`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Bits, granularity and symmetry of a weight grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheme {
    /// 2 to 8.
    pub bits: u32,
    /// Columns that share a scale; `None` is one scale per output channel.
    pub group: Option<usize>,
    pub symmetry: Symmetry,
}

/// The zero points that a group may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Symmetry {
    /// 0. The range has a code more below zero than above.
    Symmetric,
    /// 0 or −1: the code more is on the side where it loses less. Files say −1 by a negative scale, with the codes mirrored:
    /// W = s·(W_Z + 1) = −s·(−1 − W_Z). So it takes no bytes. (Q4_0 of ggml and AutoRound's symmetric models do the same.)
    Signed,
    /// Any code of the grid, kept in the file.
    Asymmetric,
}

impl Symmetry {
    pub const ALL: [Symmetry; 3] = [Symmetry::Symmetric, Symmetry::Signed, Symmetry::Asymmetric];
}

impl Scheme {
    /// Has its grid zero points?
    pub fn has_zero_points(&self) -> bool {
        self.symmetry != Symmetry::Symmetric
    }

    /// Do files hold zero points?
    pub fn stores_zero_points(&self) -> bool {
        self.symmetry == Symmetry::Asymmetric
    }

    /// Smallest code: -2^(b-1).
    pub fn qmin(&self) -> f32 {
        -((1i32 << (self.bits - 1)) as f32)
    }

    /// Largest code: 2^(b-1) - 1.
    pub fn qmax(&self) -> f32 {
        ((1i32 << (self.bits - 1)) - 1) as f32
    }

    /// Columns per scale of a row of `k` inputs.
    pub fn group_size(&self, k: usize) -> usize {
        self.group.unwrap_or(k)
    }

    /// Scales per row of `k` inputs.
    pub fn groups(&self, k: usize) -> usize {
        k / self.group_size(k)
    }

    /// A group that does not divide the width of a linear is a usage error that lists those that would fit.
    pub fn check_width(&self, linear: &str, k: usize) -> Result<()> {
        let Some(g) = self.group else { return Ok(()) };
        if k.is_multiple_of(g) {
            return Ok(());
        }
        let fits: Vec<String> =
            [16, 32, 64, 128, 256].iter().filter(|g| k.is_multiple_of(**g)).map(|g| format!("g{g}")).collect();
        let fits = if fits.is_empty() { "pc".to_string() } else { format!("{} or pc", fits.join(", ")) };
        Err(Error::usage(
            format!("{linear}: a group of {g} does not divide its {k} inputs"),
            format!("choose a scheme with {fits}"),
        ))
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.bits)?;
        match self.group {
            Some(g) => write!(f, "g{g}")?,
            None => f.write_str("pc")?,
        }
        f.write_str(match self.symmetry {
            Symmetry::Symmetric => "",
            Symmetry::Signed => "s",
            Symmetry::Asymmetric => "z",
        })
    }
}

impl FromStr for Scheme {
    type Err = Error;

    fn from_str(word: &str) -> Result<Scheme> {
        let bad = || {
            Error::usage(
                format!("scheme {word:?} is not known"),
                "write w<bits 2-8> then pc (per channel) or g<group>, then s for scales of both signs or z for a zero point, as in \
                 w4g128, w3pcs, w2g64z",
            )
        };
        let rest = word.strip_prefix('w').ok_or_else(bad)?;
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let bits: u32 = rest[..digits].parse().map_err(|_| bad())?;
        let rest = &rest[digits..];
        let (rest, symmetry) = match (rest.strip_suffix('s'), rest.strip_suffix('z')) {
            (Some(rest), _) => (rest, Symmetry::Signed),
            (_, Some(rest)) => (rest, Symmetry::Asymmetric),
            _ => (rest, Symmetry::Symmetric),
        };
        let group = match rest.strip_prefix('g') {
            Some(g) => Some(g.parse().ok().filter(|g| (1..=1 << 20).contains(g)).ok_or_else(bad)?),
            None if rest == "pc" => None,
            None => return Err(bad()),
        };
        if !(2..=8).contains(&bits) {
            return Err(bad());
        }
        Ok(Scheme { bits, group, symmetry })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_back() {
        for word in ["w4g128", "w3pc", "w2g64z", "w8pcz", "w2pc", "w3g64s", "w4pcs"] {
            assert_eq!(word.parse::<Scheme>().unwrap().to_string(), word);
        }
        for word in ["", "w", "w4", "w1pc", "w9pc", "4pc", "w4g", "w4g0", "w4pcx", "w4g-1", "w4zpc", "w4pcsz", "w4s"] {
            assert!(word.parse::<Scheme>().is_err(), "{word}");
        }
    }

    #[test]
    fn a_group_that_does_not_divide_names_those_that_do() {
        let e = "w4g128".parse::<Scheme>().unwrap().check_width("layer", 576).unwrap_err();
        assert_eq!(e.exit_status(), 2);
        assert!(e.to_string().contains("g16, g32, g64 or pc"), "{e}");
    }
}
