//! The instruction set that this process computes with: the best of the machine, or the one that `LRQAT_CPU` names, to
//! compare them or to stay clear of one.

use std::sync::LazyLock;

use pulp::Arch;

use crate::error::{Error, Result};

const VARIABLE: &str = "LRQAT_CPU";

/// From the least to the best. Each has what those before it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    Portable,
    /// With FMA.
    Avx2,
    Avx512,
    /// With dot products of bf16.
    Avx512Bf16,
    /// The tile unit.
    Amx,
}

/// The one that `LRQAT_CPU` names, if it is set. That the machine has it is only asked of vector instructions; the tile
/// unit is asked for where it is used.
pub fn forced() -> Result<Option<Isa>> {
    match std::env::var_os(VARIABLE) {
        None => Ok(None),
        Some(name) => named(&name.to_string_lossy()).map(Some),
    }
}

fn named(name: &str) -> Result<Isa> {
    let isa = match name {
        "portable" => Isa::Portable,
        "avx2" => Isa::Avx2,
        "avx512" => Isa::Avx512,
        "avx512bf16" => Isa::Avx512Bf16,
        "amx" => Isa::Amx,
        _ => {
            let what = format!("{VARIABLE}={name:?} names no instruction set");
            return Err(Error::usage(what, "use amx, avx512bf16, avx512, avx2 or portable, or unset it"));
        }
    };
    match arch(isa) {
        Some(_) => Ok(isa),
        None => Err(missing(isa)),
    }
}

/// This machine lacks what was named.
pub fn missing(isa: Isa) -> Error {
    let name = format!("{isa:?}").to_lowercase();
    Error::usage(format!("{VARIABLE}={name}: this machine does not have it"), "unset it")
}

/// What loops are compiled for, if the machine has it.
#[cfg(target_arch = "x86_64")]
fn arch(isa: Isa) -> Option<Arch> {
    match isa {
        Isa::Portable => Some(Arch::Scalar),
        Isa::Avx2 => pulp::x86::V3::try_new().map(Arch::V3),
        Isa::Avx512Bf16 if !is_x86_feature_detected!("avx512bf16") => None,
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => pulp::x86::V4::try_new().map(Arch::V4),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn arch(isa: Isa) -> Option<Arch> {
    (isa == Isa::Portable).then_some(Arch::Scalar)
}

/// What loops run as. Tools have refused a wrong name before; here it stands for none.
pub(crate) static ARCH: LazyLock<Arch> = LazyLock::new(|| forced().ok().flatten().and_then(arch).unwrap_or_default());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_is_none() {
        assert_eq!(named("portable").unwrap(), Isa::Portable);
        let said = named("sse9").unwrap_err().to_string();
        assert_eq!(
            said,
            "LRQAT_CPU=\"sse9\" names no instruction set; use amx, avx512bf16, avx512, avx2 or portable, or unset it"
        );
        assert!(Isa::Amx > Isa::Avx512Bf16 && Isa::Avx512Bf16 > Isa::Avx512 && Isa::Avx2 > Isa::Portable);
    }
}
