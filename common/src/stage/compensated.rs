//! Weights rounded by GPTQ before training starts, input by input of block by block: each is what is given by all linears
//! before it, rounded already, and beside it goes what the float model gives there. Scales change with the integers. A block
//! can learn its rounding from there on.

use std::collections::BTreeMap;

use half::bf16;
use rayon::prelude::*;

use super::init::inputs_not_finite;
use super::rounded::RoundedBlocks;
use super::scales::Scales;
use super::wrapped::pack_phi;
use super::wrapping::{Place, RoundedBy, Wrapping};
use crate::compute::cpu::Cpu;
use crate::compute::cpu::element::Element;
use crate::compute::cpu::gptq::Order;
use crate::compute::cpu::linear::Workspace;
use crate::compute::cpu::product::{Lines, ToF32};
use crate::error::{Error, Result};
use crate::format::tensor::{Dtype, Tensor};
use crate::model::Config;
use crate::model::forward::Batch;
use crate::model::host::{Codes, HostLinear, Source, forward_grid, pack_rows};
use crate::model::inputs::{INPUT_OF, Stream, widths};
use crate::model::learned::{Learner, Streams};
use crate::model::names::{self, LinearName};
use crate::model::weights::{Block, HostBlock};
use crate::quant::{LinearGrid, Phi, Scheme, pack};

/// What was done of the work.
pub enum Did {
    /// A block that was rounded before was passed.
    Before,
    /// A linear was rounded by GPTQ.
    Linear,
    /// A step of a block that learns.
    Step,
    /// A block was learned: what its output lacked before and after ([`crate::model::learned::Learned`]).
    Learned { layer: usize, errors: [f64; 2] },
}

/// Weights as they will be stored.
pub struct Compensated<'a> {
    scheme: Scheme,
    blocks: RoundedBlocks<'a>,
}

impl<'a> Compensated<'a> {
    /// Rounds every linear that `blocks` does not have, weighed by these sequences; `each` is told what was done.
    pub fn new(
        scales: &Scales,
        wrapping: &Wrapping,
        batches: &[Batch],
        blocks: RoundedBlocks<'a>,
        each: impl FnMut(Did),
    ) -> Result<Compensated<'a>> {
        match wrapping.rounding {
            RoundedBy::Learned { .. } => Compensated::made::<bf16>(scales, wrapping, batches, blocks, each),
            _ => Compensated::made::<f32>(scales, wrapping, batches, blocks, each),
        }
    }

    fn made<E: Element>(
        scales: &Scales,
        wrapping: &Wrapping,
        batches: &[Batch],
        mut blocks: RoundedBlocks<'a>,
        mut each: impl FnMut(Did),
    ) -> Result<Compensated<'a>> {
        if scales.model.scheme() == Some(scales.scheme) {
            return Err(Error::usage(
                format!("{}: its integers were there before: they are not rounded again", scales.stage.dir.display()),
                "leave --rounding out",
            ));
        }
        let backend = Cpu::<E>::new();
        let mut rounding = Rounding::new(&backend, scales, wrapping, batches)?;
        for layer in 0..scales.model.config().layers {
            let host = HostBlock::read(&scales.model, layer)?;
            let block = rounding.float.load(&host)?;
            let of_block = if layer < blocks.count() {
                rounding.float.pass(&block)?;
                each(Did::Before);
                rounding.stored(&blocks, layer)?
            } else {
                let mut of_block = rounding.by_gptq(&block, layer, &mut each)?;
                rounding.float.pass(&block)?;
                rounding.learn(layer, &mut of_block, &mut each)?;
                blocks.add(&of_block.bytes)?;
                of_block
            };
            rounding.pass(layer, &of_block)?;
            host.forget();
        }
        Ok(Compensated { scheme: scales.scheme, blocks })
    }

    /// The frozen weights of a linear.
    pub fn read(&self, linear: &LinearName, out: &mut [u8]) -> Result<()> {
        self.blocks.frozen(linear, out)
    }

    /// The scales and zero points that a linear was rounded by.
    pub fn grid(&self, scales: &Scales, linear: &LinearName) -> Result<LinearGrid> {
        let mut grid = scales.grid(linear)?;
        self.blocks.scales(linear, &mut grid.scale)?;
        Ok(grid)
    }

    /// The integers of a linear, where they are what is stored.
    pub fn codes(&self, scales: &Scales, linear: &LinearName) -> Result<Codes> {
        let codes = stored_codes(&self.blocks, self.scheme, linear)?;
        Ok(Codes::forward(self.scheme, codes, forward_grid(self.grid(scales, linear)?)))
    }
}

fn stored_codes(blocks: &RoundedBlocks, scheme: Scheme, linear: &LinearName) -> Result<Tensor> {
    let words = pack::words(linear.k, scheme.bits);
    let mut bytes = vec![0; 4 * linear.n * words];
    blocks.frozen(linear, &mut bytes)?;
    Ok(Tensor::owned(bytes, Dtype::I32, vec![linear.n, words]))
}

/// How many of the batches GPTQ takes its inputs from.
fn weighed(batches: &[Batch]) -> usize {
    let mut windows = 0;
    let before = |batch: &&Batch| {
        windows += batch.segments.len() as u64 - 1;
        windows <= RoundedBy::GPTQ_WINDOWS
    };
    batches.iter().take_while(before).count()
}

/// A block at work.
#[derive(Default)]
struct OfBlock {
    /// Those linears of it that are rounded.
    linears: BTreeMap<String, Linear>,
    /// What is stored of them.
    bytes: Vec<u8>,
}

/// The text on its way through the float model and through what is rounded of it.
struct Rounding<'b, E: Element> {
    scales: &'b Scales,
    wrapping: &'b Wrapping,
    workspace: Workspace,
    float: Stream<'b, Cpu<E>>,
    rounded: Stream<'b, Cpu<E>>,
    learner: Option<Learner<'b, E>>,
    /// How many of the batches GPTQ takes its inputs from.
    weighed: usize,
}

impl<'b, E: Element> Rounding<'b, E> {
    fn new(
        backend: &'b Cpu<E>,
        scales: &'b Scales,
        wrapping: &'b Wrapping,
        batches: &'b [Batch],
    ) -> Result<Rounding<'b, E>> {
        let learner = match wrapping.rounding {
            RoundedBy::Learned { steps } => {
                Some(Learner::new(backend, &scales.model, batches, scales.scheme, steps, wrapping.seed)?)
            }
            _ => None,
        };
        let (float, rounded) =
            (Stream::new(backend, &scales.model, batches)?, Stream::new(backend, &scales.model, batches)?);
        let (workspace, weighed) = (Workspace::default(), weighed(batches));
        Ok(Rounding { scales, wrapping, workspace, float, rounded, learner, weighed })
    }

    fn linears(&self, layer: usize) -> [LinearName; 7] {
        names::block_linears(self.scales.model.config(), layer)
    }

    /// A block that was rounded before.
    fn stored(&self, blocks: &RoundedBlocks, layer: usize) -> Result<OfBlock> {
        let mut of_block = OfBlock::default();
        for linear in self.linears(layer) {
            let stored = Linear::stored(blocks, self.scales.scheme, self.wrapping, &linear)?;
            of_block.linears.insert(linear.name, stored);
        }
        Ok(of_block)
    }

    /// What was rounded so far of a block, as `load` reads it; to be learned, with Z.
    fn read(&self, layer: usize, of_block: &OfBlock, learning: bool) -> Result<HostBlock> {
        HostBlock::read(&Rounded { scales: self.scales, linears: &of_block.linears, learning }, layer)
    }

    /// Takes the text through a rounded block.
    fn pass(&mut self, layer: usize, of_block: &OfBlock) -> Result<()> {
        let block = self.rounded.load(&self.read(layer, of_block, false)?)?;
        self.rounded.pass(&block)
    }

    /// Rounds a block input by input.
    fn by_gptq(&mut self, block: &Block<Cpu<E>>, layer: usize, each: &mut impl FnMut(Did)) -> Result<OfBlock> {
        let phi = match self.wrapping.place {
            // What is stored is what was learned.
            _ if self.learner.is_some() => Phi::F32,
            Place::Inside { phi } => phi,
            // What is stored is integers.
            Place::Outside { .. } => Phi::Int,
        };
        let (linears, mut of_block) = (self.linears(layer), OfBlock::default());
        for (input, k) in widths(&self.scales.model).into_iter().enumerate() {
            let order = self.order(block, layer, &of_block, input, k)?;
            for (linear, _) in linears.iter().zip(INPUT_OF).filter(|(_, of)| *of == input) {
                let Some(order) = &order else {
                    return Err(inputs_not_finite(self.scales, linear, "--rounding"));
                };
                let mut of = compensate(self.scales, &self.workspace, linear, phi, order)?;
                if self.learner.is_none() {
                    of.store(self.scales.scheme, self.wrapping.place, linear, &mut of_block.bytes);
                    of.z = Vec::new();
                }
                of_block.linears.insert(linear.name.clone(), of);
                each(Did::Linear);
            }
        }
        Ok(of_block)
    }

    /// How the columns are visited that an input of width k meets, and what they make up for; none if it is not finite.
    fn order(
        &mut self,
        block: &Block<Cpu<E>>,
        layer: usize,
        of_block: &OfBlock,
        input: usize,
        k: usize,
    ) -> Result<Option<Order>> {
        let partly = self.rounded.load(&self.read(layer, of_block, false)?)?;
        let (mut gram, mut drift, mut exact) = (vec![0.0; k * k], vec![0.0; k * k], Vec::new());
        for batch in 0..self.weighed {
            self.float.show(block, batch, input..input + 1, false, |_, x| exact = x.to_vec())?;
            self.rounded.show(&partly, batch, input..input + 1, false, |_, x| {
                let rows = x.len() / k;
                let (columns, lines) = (Lines::new(x, k, rows, (1, k)), Lines::columns(x, rows, k));
                self.workspace.multiply_f32(&columns, &lines, ToF32::new(&mut gram, k, k, k, true));
                for (exact, x) in exact.iter_mut().zip(x) {
                    *exact -= x;
                }
                let columns = Lines::new(&exact, k, rows, (1, k));
                self.workspace.multiply_f32(&columns, &lines, ToF32::new(&mut drift, k, k, k, true));
            })?;
        }
        Ok(Order::new(&gram, drift, k))
    }

    /// Learns a block on from there, if that is asked for; the text of the float model is past it, that of the rounded not.
    fn learn(&mut self, layer: usize, of_block: &mut OfBlock, each: &mut impl FnMut(Did)) -> Result<()> {
        let Some(mut learner) = self.learner.take() else { return Ok(()) };
        let host = self.read(layer, of_block, true)?;
        let (scheme, place) = (self.scales.scheme, self.wrapping.place);
        let streams = Streams { inputs: self.rounded.streams(), targets: self.float.streams() };
        let learned = learner.learn(&host, streams, || each(Did::Step))?;
        for (linear, [mut z, scale]) in self.linears(layer).into_iter().zip(learned.linears) {
            let codes = pack_z(scheme, &linear, &z);
            Phi::settle(scheme, &mut z);
            let of = Linear { z, scale, codes };
            of.store(scheme, place, &linear, &mut of_block.bytes);
            of_block.linears.insert(linear.name, of);
        }
        each(Did::Learned { layer, errors: learned.errors });
        self.learner = Some(learner);
        Ok(())
    }
}

/// A linear of the block at work, rounded.
struct Linear {
    /// Z [n, k], which is rounded.
    z: Vec<f32>,
    /// Masters [n, G].
    scale: Vec<f32>,
    codes: Tensor,
}

impl Linear {
    /// Adds it to its block as it will be stored.
    fn store(&self, scheme: Scheme, place: Place, linear: &LinearName, block: &mut Vec<u8>) {
        let k = linear.k;
        match place {
            Place::Outside { .. } => block.extend_from_slice(self.codes.bytes()),
            Place::Inside { phi } => {
                let at = block.len();
                block.resize(at + linear.n * phi.row_bytes(scheme, k), 0);
                pack_phi(
                    phi,
                    scheme,
                    k,
                    &mut block[at..],
                    #[inline(always)]
                    |row, z| z.copy_from_slice(&self.z[row * k..][..k]),
                );
            }
        }
        block.extend_from_slice(bytemuck::cast_slice(&self.scale));
    }

    /// As the stored ones have it; without Z.
    fn stored(blocks: &RoundedBlocks, scheme: Scheme, wrapping: &Wrapping, linear: &LinearName) -> Result<Linear> {
        let codes = match wrapping.place {
            Place::Outside { .. } => stored_codes(blocks, scheme, linear)?,
            Place::Inside { phi } => {
                let row_bytes = phi.row_bytes(scheme, linear.k);
                let mut bytes = vec![0; linear.n * row_bytes];
                blocks.frozen(linear, &mut bytes)?;
                let row = |(z, bytes): (&mut [f32], &[u8])| phi.unpack_row(scheme, bytes, z);
                pack_rows(scheme, linear.n, linear.k, |first, z| {
                    z.chunks_exact_mut(linear.k).zip(bytes[first * row_bytes..].chunks_exact(row_bytes)).for_each(row);
                })
            }
        };
        let mut scale = vec![0.0; linear.n * scheme.groups(linear.k)];
        blocks.scales(linear, &mut scale)?;
        Ok(Linear { z: Vec::new(), scale, codes })
    }
}

/// A linear rounded by GPTQ.
fn compensate(scales: &Scales, workspace: &Workspace, linear: &LinearName, phi: Phi, order: &Order) -> Result<Linear> {
    let (n, k, scheme) = (linear.n, linear.k, scales.scheme);
    let start = scales.start(linear)?;
    let mut z = vec![0.0; n * k];
    z.par_chunks_exact_mut(k).enumerate().for_each(|(row, z)| start.read(row, z));
    start.forget();
    let scale = order.compensate(workspace, &mut z, &start.grid, scheme, phi);
    let codes = pack_z(scheme, linear, &z);
    Ok(Linear { z, scale, codes })
}

fn pack_z(scheme: Scheme, linear: &LinearName, z: &[f32]) -> Tensor {
    // It only copies: there is nothing to compile for an instruction set.
    pack_rows(scheme, linear.n, linear.k, |first, out| out.copy_from_slice(&z[first * linear.k..][..out.len()]))
}

/// The model with some linears of a block rounded.
struct Rounded<'a> {
    scales: &'a Scales,
    linears: &'a BTreeMap<String, Linear>,
    /// Z and the scales are to be learned.
    learning: bool,
}

impl Source for Rounded<'_> {
    fn config(&self) -> &Config {
        self.scales.model.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.scales.model.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let Some(of) = self.linears.get(&linear.name) else { return self.scales.model.linear(linear) };
        let masters = LinearGrid { scale: of.scale.clone(), zero: self.scales.grid(linear)?.zero };
        if !self.learning {
            let grid = forward_grid(masters);
            return Ok(HostLinear::Codes(Codes::forward(self.scales.scheme, of.codes.clone(), grid)));
        }
        let codes = Codes::forward(self.scales.scheme, of.codes.clone(), masters);
        Ok(HostLinear::Codes(Codes { master: true, latent: Some(of.z.clone()), ..codes }))
    }
}
