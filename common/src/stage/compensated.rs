//! Weights rounded by GPTQ before training starts, block by block: the inputs of a block are those that the blocks before it
//! give when they are rounded already.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::scales::Scales;
use super::wrapped::pack_phi;
use super::wrapping::Place;
use crate::compute::cpu::Cpu;
use crate::compute::cpu::gptq::Order;
use crate::compute::cpu::linear::Workspace;
use crate::compute::cpu::product::{Lines, ToF32};
use crate::error::{Error, Result};
use crate::format::tensor::{Dtype, Tensor};
use crate::model::Config;
use crate::model::forward::Batch;
use crate::model::host::{Codes, HostLinear, Source, forward_grid, pack_rows};
use crate::model::inputs::{INPUT_OF, Stream, widths};
use crate::model::names::{self, LinearName};
use crate::model::weights::HostBlock;
use crate::quant::{LinearGrid, Scheme, pack};

/// Frozen weights as they will be stored, in a file that goes when this does.
pub struct Compensated {
    scheme: Scheme,
    path: PathBuf,
    file: File,
    /// Where those of a linear begin.
    places: BTreeMap<String, u64>,
    end: u64,
}

impl Compensated {
    /// Rounds every linear, weighed by these sequences; `each` is told of each. The file lies in `dir`.
    pub fn new(
        scales: &Scales,
        place: Place,
        batches: &[Batch],
        dir: &Path,
        mut each: impl FnMut(),
    ) -> Result<Compensated> {
        if scales.model.scheme() == Some(scales.scheme) {
            return Err(Error::usage(
                format!("{}: its integers were there before: they are not rounded again", scales.stage.dir.display()),
                "leave --rounding gptq out",
            ));
        }
        let file = tempfile::tempfile_in(dir).map_err(Error::io(dir, "write"))?;
        let mut made = Compensated { scheme: scales.scheme, path: dir.into(), file, places: BTreeMap::new(), end: 0 };
        let (backend, workspace) = (Cpu::<f32>::new(), Workspace::default());
        let mut stream = Stream::new(&backend, &scales.model, batches)?;
        for layer in 0..scales.model.config().layers {
            let float = HostBlock::read(&scales.model, layer)?;
            let mut grams = widths(&scales.model).map(|k| vec![0.0; k * k]);
            stream.show(&float, false, |input, x| {
                let gram = &mut grams[input];
                let k = gram.len().isqrt();
                let rows = x.len() / k;
                let (columns, rows) = (Lines::new(x, k, rows, (1, k)), Lines::columns(x, rows, k));
                workspace.multiply_f32(&columns, &rows, ToF32::new(gram, k, k, k, true));
            })?;
            float.forget();
            let orders = grams.into_par_iter().map(|gram| Order::new(&gram, gram.len().isqrt()));
            let orders = orders.collect::<Vec<Option<Order>>>();
            let mut rounded = Rounded { scales, codes: BTreeMap::new() };
            for (linear, input) in names::block_linears(scales.model.config(), layer).into_iter().zip(INPUT_OF) {
                let Some(order) = &orders[input] else {
                    return Err(Error::input(
                        scales.model.path(),
                        format!("the inputs of {} are not finite", linear.name),
                        "finite activations",
                        "leave --rounding gptq out, or fetch the model again",
                    ));
                };
                let codes = made.round(scales, &linear, place, order)?;
                rounded.codes.insert(linear.name, codes);
                each();
            }
            stream.pass(&HostBlock::read(&rounded, layer)?)?;
        }
        Ok(made)
    }

    /// Rounds a linear and keeps it.
    fn round(&mut self, scales: &Scales, linear: &LinearName, place: Place, order: &Order) -> Result<Tensor> {
        let (n, k, scheme) = (linear.n, linear.k, self.scheme);
        let start = scales.start(linear)?;
        let mut z = vec![0.0; n * k];
        z.par_chunks_exact_mut(k).enumerate().for_each(|(row, z)| start.read(row, z));
        start.forget();
        order.compensate(&mut z, &start.grid, scheme);
        // It only copies: there is nothing to compile for an instruction set.
        let rows = |first: usize, out: &mut [f32]| out.copy_from_slice(&z[first * k..][..out.len()]);
        let codes = pack_rows(scheme, n, k, rows);
        let mut bytes = Vec::new();
        if let Place::Inside { phi } = place {
            bytes.resize(n * phi.row_bytes(scheme, k), 0);
            pack_phi(phi, scheme, k, &mut bytes, rows);
        }
        let kept = if bytes.is_empty() { codes.bytes() } else { &bytes };
        self.file.write_all_at(kept, self.end).map_err(Error::io(&self.path, "write"))?;
        self.places.insert(linear.name.clone(), self.end);
        self.end += kept.len() as u64;
        Ok(codes)
    }

    /// The frozen weights of a linear.
    pub fn read(&self, linear: &str, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, self.places[linear]).map_err(Error::io(&self.path, "read"))
    }

    /// The integers of a linear, where they are what is stored.
    pub fn codes(&self, linear: &LinearName, grid: &LinearGrid) -> Result<Codes> {
        let words = pack::words(linear.k, self.scheme.bits);
        let mut bytes = vec![0; 4 * linear.n * words];
        self.read(&linear.name, &mut bytes)?;
        let codes = Tensor::owned(bytes, Dtype::I32, vec![linear.n, words]);
        Ok(Codes::forward(self.scheme, codes, forward_grid(grid.clone())))
    }
}

/// The model with the linears of a block rounded.
struct Rounded<'a> {
    scales: &'a Scales,
    codes: BTreeMap<String, Tensor>,
}

impl Source for Rounded<'_> {
    fn config(&self) -> &Config {
        self.scales.model.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.scales.model.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let grid = forward_grid(self.scales.grid(linear)?);
        Ok(HostLinear::Codes(Codes::forward(self.scales.scheme, self.codes[&linear.name].clone(), grid)))
    }
}
