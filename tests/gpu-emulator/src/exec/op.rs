//! The compact form that a kernel is interpreted in. Registers are rows of 32 lanes in three banks (32 bits, which hold
//! 8- and 16-bit values zero-extended, 64 bits, predicates) and are named by their index; constants and special
//! registers are rows that are filled before a warp starts, so that every operand is a row.

use crate::ptx::Scalar;

/// Index of a row; the instruction says of which bank.
pub type Row = u32;
/// In place of a row: nothing is read or written there.
pub const NONE: Row = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    W16,
    W32,
    W64,
}

impl Width {
    pub fn of(bits: u32) -> Self {
        match bits {
            64 => Width::W64,
            32 => Width::W32,
            _ => Width::W16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Zero,
    Down,
    Up,
}

/// Modifiers of an operation on floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub round: Round,
    /// `.ftz`: subnormal inputs and results become zero.
    pub flush: bool,
    /// `.sat`: clamped to [0, 1], NaN to 0.
    pub saturate: bool,
    /// `.relu`: negative results become 0, NaN stays.
    pub relu: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Integer {
    Add,
    Sub,
    Mul,
    MulHighSigned,
    MulHighUnsigned,
    Mad,
    MadHighSigned,
    MadHighUnsigned,
    DivSigned,
    DivUnsigned,
    RemSigned,
    RemUnsigned,
    MinSigned,
    MinUnsigned,
    MaxSigned,
    MaxUnsigned,
    SadSigned,
    SadUnsigned,
    And,
    Or,
    Xor,
    Not,
    Neg,
    Abs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shift {
    Left,
    RightSigned,
    RightUnsigned,
}

/// Of 32 or 64 bits, with a result of 32 bits (`Reverse`: of the same width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    Ones,
    LeadingZeros,
    FindSigned { shift: bool },
    FindUnsigned { shift: bool },
    Reverse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permute {
    Index,
    Forward4,
    Backward4,
    Replicate8,
    EdgeLeft,
    EdgeRight,
    Replicate16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carry {
    Add,
    Sub,
    MadLow,
    MadHigh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    Add,
    Sub,
    Mul,
    Fma,
    Div,
    Min,
    Max,
    /// With `.NaN`: NaN if either is.
    MinNan,
    MaxNan,
    Neg,
    Abs,
    CopySign,
    Sqrt,
    Rcp,
    Rsqrt,
    Exp2,
    Log2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    F16,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Those below are of floats only: true if either is NaN.
    EqU,
    NeU,
    LtU,
    LeU,
    GtU,
    GeU,
    Number,
    Nan,
}

/// What a comparison is combined with: the result of the boolean operation with `predicate` (negated).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combine {
    pub with: Logic,
    pub predicate: Row,
    pub negate: bool,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Test {
    pub f: Compare,
    pub of: Scalar,
    pub flush: bool,
    pub a: Row,
    pub b: Row,
    pub combine: Option<Combine>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logic {
    And,
    Or,
    Xor,
    Not,
    Copy,
}

/// An addition, subtraction or product with the carry that came in, and whether one goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CarryOp {
    pub f: Carry,
    pub signed: bool,
    pub takes: bool,
    pub gives: bool,
}

/// On halves, one or a pair in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HalfOp {
    pub f: Float,
    pub of: Half,
    pub packed: bool,
    pub mode: Mode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    pub from: Scalar,
    pub to: Scalar,
    pub mode: Mode,
    /// `.rni` and so on of a float to a float.
    pub to_integral: bool,
    /// Of the result.
    pub register: Width,
}

/// Operations on registers alone. `d` takes the result, `from` are the operands in the order of the instruction, some NONE.
/// `Low` is the low half of a 64-bit row, `Extend` a 32-bit row zero-extended; `Pack` and `Unpack` are the moves between
/// a row and its parts of `width` bits, the first the lowest. `Wide` has a result of twice the width of its factors,
/// `Extract` and `Insert` are `bfe` and `bfi`, `ConvertPair` puts its first operand into the upper half. Of a comparison,
/// `p` takes the result and `q` its opposite, either may be NONE; `Set` gives all ones or 1.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arithmetic {
    Copy32 { d: Row, a: Row },
    Copy64 { d: Row, a: Row },
    Low { d: Row, a: Row },
    Extend { d: Row, a: Row },
    Pack { d: Row, wide: bool, parts: List, width: u32 },
    Unpack { parts: List, width: u32, a: Row, wide: bool },
    Integer { f: Integer, width: Width, d: Row, from: [Row; 3] },
    Wide { signed: bool, narrow: Width, d: Row, from: [Row; 3] },
    Shift { f: Shift, width: Width, d: Row, from: [Row; 2] },
    Count { f: Count, width: Width, d: Row, a: Row },
    Extract { signed: bool, width: Width, d: Row, from: [Row; 3] },
    Insert { width: Width, d: Row, from: [Row; 4] },
    Permute { f: Permute, d: Row, from: [Row; 3] },
    Funnel { right: bool, wrap: bool, d: Row, from: [Row; 3] },
    Lop3 { table: u8, d: Row, from: [Row; 3] },
    Carry { op: CarryOp, width: Width, d: Row, from: [Row; 3] },
    F32 { f: Float, mode: Mode, d: Row, from: [Row; 3] },
    F64 { f: Float, d: Row, from: [Row; 3] },
    Half { op: HalfOp, d: Row, from: [Row; 3] },
    Convert { how: Conversion, d: Row, a: Row },
    ConvertPair { to: Half, mode: Mode, d: Row, from: [Row; 2] },
    SetPredicate { test: Test, p: Row, q: Row },
    Set { test: Test, float: bool, d: Row },
    Select { width: Width, d: Row, from: [Row; 2], p: Row },
    Predicate { f: Logic, d: Row, a: Row, b: Row },
}

/// A stretch of [`super::program::Program::lists`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    pub start: u32,
    pub len: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    None,
    Narrow(Row),
    Wide(Row),
}

/// A space; `Parameter` are the parameters of the kernel, `Generic` is known by the address when the instruction runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Global,
    Shared,
    Local,
    Parameter,
    Generic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub space: Where,
    pub base: Base,
    pub offset: i64,
}

/// Elements of a load or store: `rows` are of the 64-bit bank if `wide`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elements {
    /// Bytes of one.
    pub size: u32,
    pub rows: List,
    pub wide: bool,
    /// Loads of signed types are extended to the width of the register.
    pub extend: Option<Width>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
    Increment,
    Decrement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

/// What lanes do together: it happens when all lanes of the mask have arrived. The result of a vote is a 32-bit row for a
/// ballot, else a predicate. `MultiplyMatrix` is m16n8k16 with f32 accumulation, by lists of 4, 4, 2 and 4 rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    Sync,
    Shuffle { f: Exchange, d: Row, p: Row, from: [Row; 3] },
    Vote { f: Vote, d: Row, p: Row, negate: bool },
    Match { width: Width, d: Row, a: Row },
    Reduce { f: Atomic, signed: bool, d: Row, a: Row },
    LoadMatrix { rows: List, transpose: bool, address: Address },
    MultiplyMatrix { of: Half, d: List, from: [List; 3] },
}

/// An instruction. The rows of an atomic are the result (or NONE), the operand, and what is swapped in; `Together` has the
/// row of its mask, or NONE for all lanes (`.aligned`); `CopyWait` waits for all groups of copies but the newest `keep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Arithmetic(Arithmetic),
    Load { address: Address, elements: Elements, strong: bool },
    Store { address: Address, elements: Elements, strong: bool },
    Atomic { f: Atomic, of: Scalar, address: Address, rows: [Row; 3] },
    Fence,
    ActiveMask { d: Row },
    Together { f: Together, mask: Row },
    Branch { to: u32 },
    Exit,
    Barrier,
    Trap,
    CopyAsync { to: Address, from: Address, size: u32, from_size: Row },
    CopyCommit,
    CopyWait { keep: u32 },
}

/// Which lanes run an instruction: all, or those where a predicate is true (or false).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    Always,
    If(Row),
    Unless(Row),
}

#[derive(Debug, Clone, Copy)]
pub struct Inst {
    pub guard: Guard,
    pub op: Op,
}
