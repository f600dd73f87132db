//! Opcodes that move, convert, compare and choose.

use super::opcode::Opcode;
use super::operands::nth;
use super::{Decoder, Result};
use crate::exec::op::*;
use crate::exec::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::ptx::{Operand, Scalar, Space};

impl Decoder<'_> {
    pub(super) fn convert(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<()> {
        let op = match opcode.name {
            "mov" => self.mov(guard, opcode, operands)?,
            "cvt" => self.cvt(guard, opcode, operands)?,
            "cvta" => self.cvta(guard, opcode, operands)?,
            "setp" | "set" => self.comparison(guard, opcode, operands)?,
            _ => {
                let of = opcode.type_()?;
                let d = self.exact(of, operands, 0)?;
                let a = self.source(guard, of, operands, 1)?;
                let b = self.source(guard, of, operands, 2)?;
                let p = self.predicate(nth(operands, 3)?)?;
                Arithmetic::Select { width: Width::of(of.bits()), d, from: [a, b], p }
            }
        };
        self.arithmetic(guard, op);
        Ok(())
    }

    fn mov(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Arithmetic> {
        let of = opcode.type_()?;
        let wide = of.bits() == 64;
        let part = |count: usize| match of.bits() / count as u32 {
            32 => Ok(Scalar::B32),
            16 => Ok(Scalar::B16),
            _ => Err(format!("{count} parts of {} bits are not modelled", of.bits())),
        };
        match (nth(operands, 0)?, nth(operands, 1)?) {
            (Operand::Vector(list), source) => {
                let part = part(list.len())?;
                let (rows, _) = self.targets(part, nth(operands, 0)?)?;
                let a = self.source(guard, of, std::slice::from_ref(source), 0)?;
                Ok(Arithmetic::Unpack { parts: self.list(&rows), width: part.bits(), a, wide })
            }
            (_, Operand::Vector(list)) => {
                let part = part(list.len())?;
                let rows = self.sources(guard, part, nth(operands, 1)?)?;
                let d = self.exact(of, operands, 0)?;
                Ok(Arithmetic::Pack { d, wide, parts: self.list(&rows), width: part.bits() })
            }
            _ => {
                let d = self.exact(of, operands, 0)?;
                let a = self.source(guard, of, operands, 1)?;
                Ok(match of.bits() {
                    1 => Arithmetic::Predicate { f: Logic::Copy, d, a, b: NONE },
                    64 => Arithmetic::Copy64 { d, a },
                    _ => Arithmetic::Copy32 { d, a },
                })
            }
        }
    }

    fn cvt(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Arithmetic> {
        let [to, from] = opcode.types[..] else { return Err("it needs two types".into()) };
        let to_integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|word| opcode.has(word));
        let mode = opcode.mode();
        if let Scalar::F16x2 | Scalar::Bf16x2 = to {
            let to = if to == Scalar::F16x2 { Half::F16 } else { Half::Bf16 };
            let d = self.exact(Scalar::B32, operands, 0)?;
            let a = self.source(guard, from, operands, 1)?;
            let b = self.source(guard, from, operands, 2)?;
            if mode.saturate || from != Scalar::F32 {
                return Err("this conversion is not modelled".into());
            }
            return Ok(Arithmetic::ConvertPair { to, mode, d, from: [a, b] });
        }
        if to == Scalar::F64 && !to_integral && mode.round != Round::Nearest {
            return Err("to f64 only the nearest is modelled".into());
        }
        let (d, register) = self.target(to, nth(operands, 0)?)?;
        let a = self.source(guard, from, operands, 1)?;
        Ok(match (from, to) {
            (Scalar::U32, Scalar::U64) => Arithmetic::Extend { d, a },
            (Scalar::U64 | Scalar::S64, Scalar::U32 | Scalar::S32) if !mode.saturate && register == Width::W32 => {
                Arithmetic::Low { d, a }
            }
            _ => Arithmetic::Convert { how: Conversion { from, to, mode, to_integral, register }, d, a },
        })
    }

    /// Between the addresses of a space and generic ones; those of global memory are the same.
    fn cvta(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Arithmetic> {
        let of = opcode.type_()?;
        let back = opcode.has("to");
        let window = match opcode.space() {
            Space::Shared => SHARED_WINDOW,
            Space::Local => LOCAL_WINDOW,
            _ => 0,
        };
        let d = self.exact(of, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        if of.bits() != 64 {
            return Err("addresses have 64 bits".into());
        }
        let f = if back { Integer::Sub } else { Integer::Add };
        Ok(match window {
            0 => Arithmetic::Copy64 { d, a },
            _ => Arithmetic::Integer { f, width: Width::W64, d, from: [a, self.constant64(window), NONE] },
        })
    }

    fn comparison(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Arithmetic> {
        let of = *opcode.types.last().ok_or("no type")?;
        use Compare::*;
        let compares = [
            ("eq", Eq),
            ("ne", Ne),
            ("lt", Lt),
            ("lo", Lt),
            ("le", Le),
            ("ls", Le),
            ("gt", Gt),
            ("hi", Gt),
            ("ge", Ge),
            ("hs", Ge),
            ("equ", EqU),
            ("neu", NeU),
            ("ltu", LtU),
            ("leu", LeU),
            ("gtu", GtU),
            ("geu", GeU),
            ("num", Number),
            ("nan", Nan),
        ];
        let f = opcode.one_of(&compares).ok_or("no comparison")?;
        let flush = opcode.has("ftz");
        let with = opcode.one_of(&[("and", Logic::And), ("or", Logic::Or), ("xor", Logic::Xor)]);
        let a = self.source(guard, of, operands, 1)?;
        let b = self.source(guard, of, operands, 2)?;
        let combine = match with {
            None => None,
            Some(with) => Some(match nth(operands, 3)? {
                Operand::Not(name) => Combine { with, predicate: self.predicate_named(name)?, negate: true },
                operand => Combine { with, predicate: self.predicate(operand)?, negate: false },
            }),
        };
        let test = Test { f, of, flush, a, b, combine };
        if opcode.name == "set" {
            let to = opcode.type_()?;
            let d = self.exact(to, operands, 0)?;
            if to.bits() != 32 {
                return Err("a result of this type is not modelled".into());
            }
            return Ok(Arithmetic::Set { test, float: to == Scalar::F32, d });
        }
        let (p, q) = match nth(operands, 0)? {
            Operand::Pair(p, q) => (self.target(Scalar::Pred, p)?.0, self.target(Scalar::Pred, q)?.0),
            p => (self.target(Scalar::Pred, p)?.0, NONE),
        };
        Ok(Arithmetic::SetPredicate { test, p, q })
    }
}
