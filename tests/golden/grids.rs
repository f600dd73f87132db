//! Scales, zero points and Φ0 of every linear, fitted by the stage's own code, against the golden ones.

use std::path::Path;

use common::model::host::Source;
use common::model::names;
use common::quant::LinearGrid;
use common::quant::fit::Fit;
use common::stage::scales::fit_linear;

use super::case::Case;
use super::shared;

#[test]
fn scales_equal_to_one_ulp_and_phi_exactly() {
    let Some(shared) = shared("scales_equal_to_one_ulp_and_phi_exactly") else { return };
    for case in Case::all(&shared) {
        let (scheme, mut worst, mut differ, mut all) = (case.scheme, 0, 0, 0);
        let fit = if scheme.has_zero_points() { Fit::MinMax } else { Fit::Lp(3.0) };
        for linear in names::linears(case.model.config()) {
            let (n, k, name) = (linear.n, linear.k, &linear.name);
            let w = case.model.float(&format!("{name}.weight"), &[n, k]).unwrap();
            let fitted = fit_linear(&w, &linear, scheme, fit, Path::new("stories260K")).unwrap();
            let golden = case.tensor(&format!("{name}.scale0"));
            for (at, (ours, golden)) in fitted.scale.iter().zip(&golden).enumerate() {
                let ulps = ours.to_bits().abs_diff(golden.to_bits());
                assert!(ulps <= 1, "{} {name}.scale[{at}]: {ours}, expected {golden}", case.name);
                worst = worst.max(ulps);
                differ += u32::from(ulps > 0);
            }
            all += golden.len();
            let zero = scheme.has_zero_points().then(|| case.tensor(&format!("{name}.zero")));
            assert_eq!(fitted.zero, zero, "{} {name}", case.name);

            // Φ0 of the golden grid, through the packed bytes.
            let grid = LinearGrid { scale: golden, zero };
            let mut real = w.to_f32();
            let phi = case.tensor(&format!("{name}.phi"));
            let (mut packed, mut row) = (vec![0; case.stored.row_bytes(scheme, k)], vec![0.0; k]);
            for (at, (real, phi)) in real.chunks_exact_mut(k).zip(phi.chunks_exact(k)).enumerate() {
                grid.to_grid(real, at, k, scheme);
                case.stored.pack_row(scheme, real, &mut packed);
                case.stored.unpack_row(scheme, &packed, &mut row);
                assert_eq!(row, phi, "{} {name} row {at}", case.name);
            }
        }
        eprintln!("{}: {all} scales, {differ} differ, by at most {worst} ulp; Φ0 equal", case.name);
    }
}
