//! Opcodes of floats.

use super::opcode::Opcode;
use super::{Decoder, Result};
use crate::exec::op::*;
use crate::ptx::{Operand, Scalar};

impl Decoder<'_> {
    pub(super) fn float(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<()> {
        use Float::*;
        let of = opcode.type_()?;
        let keep_nan = opcode.has("NaN");
        let f = match opcode.name {
            "add" => Add,
            "sub" => Sub,
            "mul" => Mul,
            "mad" | "fma" => Fma,
            "div" => Div,
            "min" if keep_nan => MinNan,
            "min" => Min,
            "max" if keep_nan => MaxNan,
            "max" => Max,
            "neg" => Neg,
            "abs" => Abs,
            "copysign" => CopySign,
            "sqrt" => Sqrt,
            "rcp" => Rcp,
            "rsqrt" => Rsqrt,
            "ex2" => Exp2,
            "lg2" => Log2,
            "sin" => Sin,
            "cos" => Cos,
            "tanh" => Tanh,
            name => return Err(format!("`{name}` of floats is not modelled")),
        };
        opcode.ignore(&["approx", "full"]);
        let mode = opcode.mode();
        let d = self.exact(of, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        let b = if operands.len() > 2 { self.source(guard, of, operands, 2)? } else { NONE };
        let c = if operands.len() > 3 { self.source(guard, of, operands, 3)? } else { NONE };
        let from = [a, b, c];
        let half = |of, packed| Arithmetic::Half { op: HalfOp { f, of, packed, mode }, d, from };
        let op = match of {
            Scalar::F32 => Arithmetic::F32 { f, mode, d, from },
            Scalar::F64 => self.double(f, mode, d, from)?,
            Scalar::F16 => half(Half::F16, false),
            Scalar::F16x2 => half(Half::F16, true),
            Scalar::Bf16 => half(Half::Bf16, false),
            _ => half(Half::Bf16, true),
        };
        let halves = [Add, Sub, Mul, Fma, Min, Max, MinNan, MaxNan, Neg, Abs, Exp2, Tanh];
        if matches!(op, Arithmetic::Half { .. }) && (mode.round != Round::Nearest || !halves.contains(&f)) {
            return Err("of halves it is not modelled".into());
        }
        self.arithmetic(guard, op);
        Ok(())
    }

    fn double(&self, f: Float, mode: Mode, d: Row, from: [Row; 3]) -> Result<Arithmetic> {
        use Float::*;
        let known = [Add, Sub, Mul, Fma, Div, Min, Max, Neg, Abs, CopySign, Sqrt, Rcp, Rsqrt];
        if mode.round != Round::Nearest || mode.saturate || !known.contains(&f) {
            return Err("of f64 it is not modelled".into());
        }
        Ok(Arithmetic::F64 { f, d, from })
    }
}
