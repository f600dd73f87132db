//! The syntax tree of a module.

/// The fundamental types (PTX ISA 5.2.1) and the packed ones (5.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F32,
    F64,
    Bf16,
    F16x2,
    Bf16x2,
}

impl Scalar {
    pub fn from_name(name: &str) -> Option<Self> {
        use Scalar::*;
        Some(match name {
            "pred" => Pred,
            "b8" => B8,
            "b16" => B16,
            "b32" => B32,
            "b64" => B64,
            "u8" => U8,
            "u16" => U16,
            "u32" => U32,
            "u64" => U64,
            "s8" => S8,
            "s16" => S16,
            "s32" => S32,
            "s64" => S64,
            "f16" => F16,
            "f32" => F32,
            "f64" => F64,
            "bf16" => Bf16,
            "f16x2" => F16x2,
            "bf16x2" => Bf16x2,
            _ => return None,
        })
    }

    /// Bits of a value; one for a predicate.
    pub fn bits(self) -> u32 {
        use Scalar::*;
        match self {
            Pred => 1,
            B8 | U8 | S8 => 8,
            B16 | U16 | S16 | F16 | Bf16 => 16,
            B32 | U32 | S32 | F32 | F16x2 | Bf16x2 => 32,
            B64 | U64 | S64 | F64 => 64,
        }
    }

    pub fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Scalar::S8 | Scalar::S16 | Scalar::S32 | Scalar::S64)
    }

    pub fn is_float(self) -> bool {
        use Scalar::*;
        matches!(self, F16 | F32 | F64 | Bf16 | F16x2 | Bf16x2)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    Generic,
    Global,
    Const,
    Shared,
    Local,
    Param,
}

impl Space {
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "global" => Space::Global,
            "const" => Space::Const,
            "shared" | "shared::cta" => Space::Shared,
            "local" => Space::Local,
            "param" => Space::Param,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone)]
pub struct Variable {
    pub space: Space,
    pub scalar: Scalar,
    pub align: usize,
    pub name: String,
    /// None for `[]`: the dynamic part of shared memory.
    pub bytes: Option<usize>,
    /// The first elements; what is not given is zero.
    pub initial: Vec<u64>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, a special register, a variable, a label or a function.
    Name(String),
    /// The bits of an integer or a float; f32 in the lower half.
    Immediate(u64),
    /// `{a, b, ...}`
    Vector(Vec<Operand>),
    /// `[base + offset]`; without a base the offset is the address.
    Address { base: Option<String>, offset: i64 },
    /// `p|q`
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`
    Not(String),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `_`
    Sink,
}

#[derive(Debug, Clone)]
pub struct Instruction {
    /// The predicate, and whether it has to be false.
    pub guard: Option<(String, bool)>,
    /// `ld`, `global`, `v4`, `f32`
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
}

#[derive(Debug, Clone)]
pub enum Statement {
    Label(String),
    Open,
    Close,
    /// `%r<37>` declares %r0 to %r36; without a count the name itself.
    Registers {
        scalar: Scalar,
        name: String,
        count: Option<u32>,
    },
    Variable(Variable),
    Instruction(Instruction),
}

#[derive(Debug, Clone)]
pub struct Function {
    pub name: String,
    /// Can be launched; else it can be called.
    pub entry: bool,
    pub returns: Vec<Variable>,
    pub parameters: Vec<Variable>,
    /// `.maxntid`: the most threads of a block.
    pub max_threads: Option<u32>,
    /// Each with its line in the source.
    pub body: Vec<(u32, Statement)>,
}

#[derive(Debug, Clone, Default)]
pub struct Module {
    /// Ten times the version of the ISA: 80 for 8.0.
    pub version: u32,
    /// 80 for `sm_80`
    pub target: u32,
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
}
