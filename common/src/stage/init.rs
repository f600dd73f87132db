//! Start values of the low-rank factors: nothing (A = 0), or the best product of their rank for what rounding lost.
//!
//! Outside the rounding the error is W0 − Ŵ (LQ-LoRA, LQER: the nearest product of low rank, by its singular values);
//! inside it is what φ lost, W0/s0 + z − Φ0. With the mean squares E[x²] of a linear's inputs each column is weighed by
//! their root, so that the error of its output is least where inputs are uncorrelated.

use std::collections::BTreeMap;

use super::compensated::Compensated;
use super::scales::Scales;
use super::wrapping::{Place, Wrapping};
use crate::compute::cpu::linear::Workspace;
use crate::compute::cpu::low_rank::nearest;
use crate::error::{Error, Result};
use crate::model::host::Source;
use crate::model::inputs::{INPUT_OF, MeanSquares};
use crate::model::names::{self, LinearName};
use crate::quant::grid;
use crate::quant::lanes::not_finite;

/// A and B by the name of their linear.
pub type Factors = BTreeMap<String, [Vec<f32>; 2]>;

/// Fits the factors of every linear that has some; `each` is told of each. Without mean squares columns weigh the same.
pub fn fit_error(
    scales: &Scales,
    w: &Wrapping,
    inputs: Option<&MeanSquares>,
    compensated: Option<&Compensated>,
    mut each: impl FnMut(),
) -> Result<Factors> {
    if scales.model.scheme() == Some(scales.scheme) {
        return Err(Error::usage(
            format!("{}: its integers were there before: what they lost is not known", scales.stage.dir.display()),
            "leave --init error out",
        ));
    }
    let (workspace, mut factors) = (Workspace::default(), Factors::new());
    for (at, linear) in names::linears(scales.model.config()).into_iter().enumerate() {
        let rank = w.rank_of(&linear);
        if rank > 0 {
            let weights = inputs.map(|inputs| inputs[at / 7][INPUT_OF[at % 7]].as_slice());
            if weights.is_some_and(|weights| not_finite(weights).is_some()) {
                return Err(inputs_not_finite(scales, &linear, "--init error"));
            }
            let lost = lost(scales, &linear, w.place, compensated)?;
            let fitted = fit_linear(lost, &linear, w, rank, weights, &workspace);
            factors.insert(linear.name, fitted);
        }
        each();
    }
    Ok(factors)
}

fn fit_linear(
    mut error: Vec<f32>,
    linear: &LinearName,
    w: &Wrapping,
    rank: usize,
    mean_squares: Option<&[f32]>,
    workspace: &Workspace,
) -> [Vec<f32>; 2] {
    let (n, k) = (linear.n, linear.k);
    // A column whose input is always 0 would have no B.
    let column = mean_squares.map(|squares| {
        let least = squares.iter().fold(0f32, |most, x| most.max(*x)) * 1e-12;
        squares.iter().map(|x| x.max(least).max(f32::MIN_POSITIVE).sqrt()).collect::<Vec<f32>>()
    });
    if let Some(column) = &column {
        for row in error.chunks_exact_mut(k) {
            row.iter_mut().zip(column).for_each(|(e, weight)| *e *= weight);
        }
    }
    let [mut a, mut b] = nearest(workspace, &error, n, k, rank, w.seed, &linear.name);
    // The product is scaled by α/r.
    let each = (rank as f32 / w.alpha).sqrt();
    a.iter_mut().for_each(|a| *a *= each);
    for row in b.chunks_exact_mut(k) {
        match &column {
            Some(column) => row.iter_mut().zip(column).for_each(|(b, weight)| *b *= each / weight),
            None => row.iter_mut().for_each(|b| *b *= each),
        }
    }
    [a, b]
}

/// What a linear is given on some text is no number: it says nothing of what errors weigh.
pub(super) fn inputs_not_finite(scales: &Scales, linear: &LinearName, flag: &str) -> Error {
    Error::input(
        scales.model.path(),
        format!("the inputs of {} are not finite", linear.name),
        "finite activations",
        format!("leave {flag} out, or fetch the model again"),
    )
}

/// What rounding lost of a linear [n, k].
fn lost(scales: &Scales, linear: &LinearName, place: Place, compensated: Option<&Compensated>) -> Result<Vec<f32>> {
    let (k, scheme, start) = (linear.k, scales.scheme, scales.start(linear)?);
    let mut error = vec![0.0; linear.n * k];
    match place {
        Place::Inside { phi } => {
            let mut kept = vec![0.0; k];
            for (row, z) in error.chunks_exact_mut(k).enumerate() {
                start.read(row, z);
                kept.copy_from_slice(z);
                phi.keep(scheme, &mut kept);
                z.iter_mut().zip(&kept).for_each(|(z, kept)| *z -= kept);
            }
        }
        Place::Outside { .. } => {
            let made = compensated.map_or_else(|| scales.rounded(linear), |of| of.codes(scales, linear))?;
            let (group, groups) = (scheme.group_size(k), scheme.groups(k));
            let mut codes = vec![0; k];
            for (row, z) in error.chunks_exact_mut(k).enumerate() {
                start.read(row, z);
                made.rows(row, k, &mut codes);
                for (j, z) in z.iter_mut().enumerate() {
                    let at = row * groups + j / group;
                    let zero = start.grid.zero.as_ref().map_or(0.0, |zero| zero[at]);
                    let code = f32::from(codes[j]) + scheme.qmin();
                    *z = start.grid.scale[at] * (*z - zero) - grid::dequantize(code, zero, made.scale[at]);
                }
            }
        }
    }
    start.forget();
    Ok(error)
}
