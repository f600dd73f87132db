//! The one table of trained tensors. Optimizer, clipping, checkpoint and plan walk it without knowing names.

use crate::compute::backend::Backend;
use crate::error::Result;

/// Which learning rate a parameter follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// A and B.
    LowRank,
    /// The scales.
    Scale,
    /// Z, weight by weight.
    Latent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub rate: Rate,
}

impl ParamSpec {
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// f32 masters of the trained tensors, in the order of the model's linears: scale, A, B of each.
pub struct Params<B: Backend> {
    pub specs: Vec<ParamSpec>,
    pub values: Vec<B::Buffer>,
}

impl<B: Backend> Params<B> {
    pub fn new() -> Params<B> {
        Params { specs: Vec::new(), values: Vec::new() }
    }

    /// Adds a row and returns its index.
    pub fn add(&mut self, backend: &B, spec: ParamSpec, value: &[f32]) -> Result<usize> {
        assert_eq!(spec.len(), value.len(), "{}", spec.name);
        self.specs.push(spec);
        self.values.push(backend.upload(value)?);
        Ok(self.values.len() - 1)
    }

    /// One zeroed buffer per parameter: gradients or moments.
    pub fn zeros_like(&self, backend: &B) -> Result<Vec<B::Buffer>> {
        self.specs.iter().map(|s| backend.zeros(s.len())).collect()
    }
}

impl<B: Backend> Default for Params<B> {
    fn default() -> Self {
        Params::new()
    }
}
