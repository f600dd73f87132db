//! One LR-QAT case of `../shared/golden`: the tensors of `make_golden.py` as a wrapped model, and its tokens.

use std::path::Path;

use common::error::Result;
use common::format::safetensors::TensorFile;
use common::format::tensor::{Dtype, Tensor};
use common::model::Config;
use common::model::forward::Batch;
use common::model::host::{HostLinear, HostLowRank, Source};
use common::model::names::LinearName;
use common::quant::{Phi, Scheme};
use common::stage::base::BaseModel;

/// Names of the files, the scheme's word, φ and the rank (`CASES` in make_golden.py).
pub const CASES: [(&str, &str, Phi, usize); 6] = [
    ("w4pc_q44", "w4pc", Phi::Q, 8),
    ("w4pc_q44_warm", "w4pc", Phi::Q, 8),
    ("w3pc_int_warm", "w3pc", Phi::Int, 4),
    ("w2pc_f32_warm", "w2pc", Phi::F32, 4),
    ("w4g4_q44_warm", "w4g4", Phi::Q, 8),
    ("w2g4z_f32_warm", "w2g4z", Phi::F32, 4),
];

pub struct Case {
    pub name: &'static str,
    pub scheme: Scheme,
    pub stored: Phi,
    pub rank: usize,
    pub file: TensorFile,
    pub model: BaseModel,
}

impl Case {
    pub fn open(shared: &Path, (name, scheme, stored, rank): (&'static str, &str, Phi, usize)) -> Case {
        let file = TensorFile::open(&shared.join(format!("golden/{name}.safetensors"))).unwrap();
        assert_eq!(file.metadata("rank"), Some(rank.to_string().as_str()));
        Case { name, scheme: scheme.parse().unwrap(), stored, rank, file, model: stories(shared) }
    }

    pub fn all(shared: &Path) -> impl Iterator<Item = Case> {
        CASES.into_iter().map(|case| Case::open(shared, case))
    }

    pub fn tensor(&self, name: &str) -> Vec<f32> {
        read(&self.file, name)
    }

    /// A linear with golden Φ0 and the trained tensors given by `trained`.
    pub fn lowrank(&self, linear: &LinearName, trained: impl Fn(&str) -> Vec<f32>) -> HostLowRank {
        let name = &linear.name;
        let row_bytes = self.stored.row_bytes(self.scheme, linear.k);
        let mut packed = vec![0; linear.n * row_bytes];
        let phi = self.tensor(&format!("{name}.phi"));
        for (phi, packed) in phi.chunks_exact(linear.k).zip(packed.chunks_exact_mut(row_bytes)) {
            self.stored.pack_row(self.scheme, phi, packed);
        }
        HostLowRank {
            scheme: self.scheme,
            stored: self.stored,
            phi: Tensor::owned(packed, Dtype::U8, vec![linear.n, row_bytes]),
            rank: self.rank,
            alpha: 1.0,
            scale: trained("scale"),
            zero: self.scheme.has_zero_points().then(|| self.tensor(&format!("{name}.zero"))),
            a: trained("lora_a"),
            b: trained("lora_b"),
        }
    }
}

impl Source for Case {
    fn config(&self) -> &Config {
        self.model.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.model.float(name, shape)
    }

    /// At the start values.
    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        let start = |suffix: &str| {
            let suffix = if suffix == "scale" { "scale0" } else { suffix };
            self.tensor(&format!("{}.{suffix}", linear.name))
        };
        Ok(HostLinear::LowRank(self.lowrank(linear, start)))
    }
}

/// The same model with its integers folded.
pub struct FoldedSource<'a>(pub &'a dyn Source);

impl Source for FoldedSource<'_> {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn float(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.0.float(name, shape)
    }

    fn linear(&self, linear: &LinearName) -> Result<HostLinear> {
        match self.0.linear(linear)? {
            HostLinear::LowRank(w) => Ok(HostLinear::Codes(w.fold(linear.n, linear.k))),
            _ => panic!("{} is not low-rank", linear.name),
        }
    }
}

/// The float model.
pub fn stories(shared: &Path) -> BaseModel {
    BaseModel::open(&shared.join("data/models/stories260K")).unwrap()
}

/// The tokens of all cases, [4, 128].
pub fn tokens(shared: &Path) -> Batch {
    let file = TensorFile::open(&shared.join("golden/tokens.safetensors")).unwrap();
    let tokens = read_tokens(&file, "tokens");
    Batch::next_token(tokens.chunks_exact(128))
}

pub fn read(file: &TensorFile, name: &str) -> Vec<f32> {
    file.get(name).unwrap_or_else(|| panic!("no {name}")).to_f32()
}

pub fn read_tokens(file: &TensorFile, name: &str) -> Vec<u32> {
    let tensor = file.get(name).unwrap_or_else(|| panic!("no {name}"));
    assert_eq!(tensor.dtype, Dtype::I64);
    tensor.bytes().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}
