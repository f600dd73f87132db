//! Reads a folded model back before it gets its name: by the reading rules of the engines, through the readers, which
//! share no code with the writers, and compares every integer, scale and zero point with what was trained.

use std::path::Path;

use rayon::prelude::*;

use super::digest::{self, Digests};
use super::write::Target;
use super::{Folded, Format, adapter};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::format::quantized::Stored;
use crate::format::spare::Spare;
use crate::format::tensor::{Dtype, Tensor};
use crate::model::Config;
use crate::model::host::{HostLinear, Source};
use crate::model::names::{self, LinearName};
use crate::model::rope::inverse_frequencies;
use crate::quant::{LinearGrid, Scheme, Symmetry};

/// Linears that are read back side by side: what is not parallel of one is hidden behind the others.
const TOGETHER: usize = 4;

const CURE: &str = "report this; nothing was kept (--no-verify keeps it)";

/// What reads back other than it should: found, expected.
type Difference = (String, String);

/// Compares with the trained model. Of linears with digests, taken as their integers were made, the digest is compared; the
/// integers are only made again to tell which differs. `each` is told of every linear.
pub fn verify(dir: &Path, target: &Target, digests: &Digests, each: impl Fn() + Sync) -> Result<()> {
    compare(dir, target, digests, each).map_err(|e| match e {
        // What readers advise is for whoever has such a file.
        Error::Input { path, found, expected, .. } if path.starts_with(dir) => {
            Error::input(path, found, expected, CURE)
        }
        other => other,
    })
}

fn compare(dir: &Path, target: &Target, digests: &Digests, each: impl Fn() + Sync) -> Result<()> {
    let mut written = Folded::open(dir)?;
    if target.scheme.symmetry == Symmetry::Signed {
        written = written.allowing_both_signs();
    }
    let differs = |(found, expected)| Err(Error::input(written.path(), found, expected, CURE));
    if (written.format, written.scheme) != (target.format, target.scheme) {
        let found = format!("it reads as {} in {}", written.scheme, written.format);
        return differs((found, format!("{} in {}", target.scheme, target.format)));
    }
    if !same_config(&written.config, target) {
        return differs(("its configuration reads as another model's".into(), "that of the trained model".into()));
    }
    let spare = Spare::default();
    let linear = |linear: &LinearName| {
        let difference = linear_differs(&written, target, linear, digests.get(&linear.name).copied(), &spare);
        each();
        difference.transpose()
    };
    let weights = || {
        for some in target.linears().chunks(TOGETHER) {
            if let Some(difference) = some.par_iter().find_map_first(linear) {
                return differs(difference?);
            }
        }
        match floats_differ(&written, target)? {
            Some(difference) => differs(difference),
            None => Ok(()),
        }
    };
    if let Some(lora) = &target.lora
        && let Some(difference) = adapter::differs(dir, target, lora)?
    {
        return differs(difference);
    }
    let (weights, tokenizer) = rayon::join(weights, || tokenizer(&written, target));
    weights.and(tokenizer)
}

/// The first tensor that stays floating point and differs.
fn floats_differ(written: &Folded, target: &Target) -> Result<Option<Difference>> {
    for (name, shape) in names::floats(target.source.config()) {
        let (got, want) = (written.float(&name, &shape)?, target.source.float(&name, &shape)?);
        if kept(target, &name, &want) && !same_values(&got, &want) {
            return Ok(Some((format!("{name} reads back changed"), "the values of the trained model".into())));
        }
        got.forget();
        want.forget();
    }
    Ok(None)
}

/// A GGUF says frequencies as f32 and cannot say a sliding window; all else must be equal.
fn same_config(got: &Config, target: &Target) -> bool {
    let want = target.source.config();
    if target.format != Format::Gguf {
        return got == want;
    }
    let (mine, theirs) = (inverse_frequencies(&got.rope, got.head_dim), inverse_frequencies(&want.rope, want.head_dim));
    let close = mine.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
    close && *got == Config { window: None, rope: got.rope.clone(), ..want.clone() }
}

/// The first integer, scale or zero point that differs.
fn linear_differs(
    written: &Folded,
    target: &Target,
    linear: &LinearName,
    digest: Option<u128>,
    spare: &Spare<Vec<u8>>,
) -> Result<Option<Difference>> {
    let stored = written.stored(linear)?;
    let differ = |grid: &LinearGrid| Ok(grids_differ(linear, grid, &target.source.grid(linear)?, target.scheme));
    let Some(digest) = digest else {
        let (grid, difference) = codes_differ(linear, &stored, &target.source.linear(linear)?, target.scheme, spare)?;
        return difference.map_or_else(|| differ(&grid), |difference| Ok(Some(difference)));
    };
    let (grid, rows) = stored.visit(spare, |_, codes| digest::of_rows(codes, linear.k))?;
    if digest::of_linear(rows) == digest {
        return differ(&grid);
    }
    let (_, difference) = codes_differ(linear, &stored, &target.source.linear(linear)?, target.scheme, spare)?;
    let twice = || (format!("{} was written from other integers", linear.name), "those that it is made of now".into());
    Ok(Some(difference.unwrap_or_else(twice)))
}

/// The grid read back, and the first integer that differs: some rows at a time are made again and compared.
fn codes_differ(
    linear: &LinearName,
    stored: &Stored,
    trained: &HostLinear,
    scheme: Scheme,
    spare: &Spare<Vec<u8>>,
) -> Result<(LinearGrid, Option<Difference>)> {
    let LinearName { name, k, .. } = linear;
    let integers = trained.integers(*k);
    let (grid, first) = stored.visit(spare, |first, got| {
        let mut want = vec![0; got.len()];
        integers.rows(first, &mut want);
        let at = if got == want { None } else { got.iter().zip(&want).position(|(got, want)| got != want) };
        at.map(|at| (first * k + at, got[at], want[at]))
    })?;
    trained.stored().forget();
    let difference = first.into_iter().flatten().next().map(|(at, got, want)| {
        let value = |code: u8| i32::from(code) + scheme.qmin() as i32;
        let found = format!("{name} W_Z[{}, {}] reads back as {}", at / k, at % k, value(got));
        (found, value(want).to_string())
    });
    Ok((grid, difference))
}

/// The first scale or zero point that differs.
fn grids_differ(linear: &LinearName, got: &LinearGrid, want: &LinearGrid, scheme: Scheme) -> Option<Difference> {
    let (name, groups) = (&linear.name, scheme.groups(linear.k));
    let grids = [("scale", Some(&got.scale), Some(&want.scale)), ("zero point", got.zero.as_ref(), want.zero.as_ref())];
    for (what, got, want) in grids {
        let (got, want) = (got.map_or(&[][..], |v| v), want.map_or(&[][..], |v| v));
        if got.len() != want.len() {
            return Some((format!("{name} reads back with {} {what}s", got.len()), want.len().to_string()));
        }
        let bytes = bytemuck::cast_slice::<f32, u8>;
        if bytes(got) == bytes(want) {
            continue;
        }
        if let Some(i) = (0..got.len()).find(|i| got[*i].to_bits() != want[*i].to_bits()) {
            let place = format!("[{}, {}]", i / groups, i % groups);
            return Some((format!("{name} {what}{place} reads back as {}", got[i]), want[i].to_string()));
        }
    }
    None
}

/// Is the tensor written without rounding? Only a GGUF's embedding and head may be rounded, on demand.
fn kept(target: &Target, name: &str, tensor: &Tensor) -> bool {
    let embedding = [names::EMBEDDING, names::HEAD].contains(&name);
    target.format != Format::Gguf || !embedding || super::gguf::keeps(target, tensor.dtype)
}

fn same_values(got: &Tensor, want: &Tensor) -> bool {
    if got.dtype == want.dtype {
        return got.same_bytes(want);
    }
    debug_assert!(got.dtype == Dtype::F32, "norms of a GGUF");
    got.to_f32() == want.to_f32()
}

/// The files of the tokenizer are the same. Two texts that use letters, digits, blanks, newlines, several scripts and an emoji must give the same ids.
fn tokenizer(written: &Folded, target: &Target) -> Result<()> {
    let texts = [
        "In 1867, Brahms's 2nd sextet —\n\n  was  \"finished\"; it'll cost 12,345.67 €.",
        "日本語 ελληνικά 🙂\tx=0x1F",
    ];
    let files = written.support_files()?;
    // A GGUF says them in its own way.
    if target.format != Format::Gguf
        && let Some((name, _)) = target.support.iter().find(|file| !files.contains(file))
    {
        let found = format!("{name} reads back changed");
        return Err(Error::input(written.path(), found, "the file of the trained model", CURE));
    }
    let before = Tokenizer::from_files(target.from, target.support)?;
    let after = Tokenizer::from_files(written.path(), &files)?;
    for text in texts {
        let (got, want) = (after.encode(text, true)?, before.encode(text, true)?);
        if got != want {
            let found = format!("its tokenizer reads {text:?} as {got:?}");
            return Err(Error::input(written.path(), found, format!("{want:?}"), CURE));
        }
    }
    Ok(())
}
