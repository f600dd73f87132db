//! Opcodes of control flow, and of warps.

use super::opcode::Opcode;
use super::operands::nth;
use super::{Decoder, Result};
use crate::exec::op::*;
use crate::ptx::{Operand, Scalar};

impl Decoder<'_> {
    pub(super) fn control(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<()> {
        let op = match opcode.name {
            "bra" => {
                opcode.ignore(&["uni"]);
                let Operand::Name(label) = nth(operands, 0)? else { return Err("no label".into()) };
                let at = self.program.code.len();
                self.frames.last_mut().ok_or("no function")?.branches.push((at, label.clone()));
                Op::Branch { to: u32::MAX }
            }
            "exit" => Op::Exit,
            "ret" => {
                opcode.ignore(&["uni"]);
                let at = self.program.code.len();
                match self.frames.last_mut().filter(|frame| frame.called) {
                    None => Op::Exit,
                    Some(frame) => {
                        frame.returns.push(at);
                        Op::Branch { to: u32::MAX }
                    }
                }
            }
            "trap" => Op::Trap,
            "nop" => return Ok(()),
            "bar" | "barrier" => self.barrier(guard, opcode, operands)?,
            "activemask" => Op::ActiveMask { d: self.exact(opcode.type_()?, operands, 0)? },
            "shfl" | "vote" | "match" | "redux" => self.exchange(guard, opcode, operands)?,
            "ldmatrix" => self.load_matrix(opcode, operands)?,
            "mma" => self.multiply(guard, opcode, operands)?,
            name => return Err(format!("`{name}` is not modelled")),
        };
        self.emit(guard, op);
        Ok(())
    }

    fn barrier(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Op> {
        opcode.ignore(&["cta", "aligned"]);
        if !opcode.has("sync") {
            return Err("it is not modelled".into());
        }
        if opcode.has("warp") {
            let mask = self.source(guard, Scalar::B32, operands, 0)?;
            return Ok(Op::Together { f: Together::Sync, mask });
        }
        match operands {
            [Operand::Immediate(_)] => Ok(Op::Barrier),
            _ => Err("barriers of a part of the block are not modelled".into()),
        }
    }

    fn exchange(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Op> {
        if !opcode.has("sync") {
            return Err("without `.sync` it is not modelled".into());
        }
        let of = opcode.type_()?;
        if opcode.name == "shfl" {
            let kinds = [
                ("up", Exchange::Up),
                ("down", Exchange::Down),
                ("bfly", Exchange::Butterfly),
                ("idx", Exchange::Index),
            ];
            let f = opcode.one_of(&kinds).ok_or("no mode")?;
            let (d, p) = match nth(operands, 0)? {
                Operand::Pair(d, p) => (self.target(of, d)?.0, self.target(Scalar::Pred, p)?.0),
                d => (self.target(of, d)?.0, NONE),
            };
            let [a, b, clamp, mask] = self.narrow_sources(guard, operands)?;
            return Ok(Op::Together { f: Together::Shuffle { f, d, p, from: [a, b, clamp] }, mask });
        }
        let mask = self.source(guard, Scalar::B32, operands, 2)?;
        let f = match opcode.name {
            "vote" => {
                let kinds = [("all", Vote::All), ("any", Vote::Any), ("uni", Vote::Uniform), ("ballot", Vote::Ballot)];
                let f = opcode.one_of(&kinds).ok_or("no mode")?;
                let d = self.exact(of, operands, 0)?;
                let (p, negate) = match nth(operands, 1)? {
                    Operand::Not(name) => (self.predicate_named(name)?, true),
                    operand => (self.predicate(operand)?, false),
                };
                Together::Vote { f, d, p, negate }
            }
            "match" => {
                if !opcode.has("any") {
                    return Err("it is not modelled".into());
                }
                let d = self.exact(Scalar::B32, operands, 0)?;
                Together::Match { width: Width::of(of.bits()), d, a: self.source(guard, of, operands, 1)? }
            }
            _ => {
                let kinds = [
                    ("add", Atomic::Add),
                    ("min", Atomic::Min),
                    ("max", Atomic::Max),
                    ("and", Atomic::And),
                    ("or", Atomic::Or),
                    ("xor", Atomic::Xor),
                ];
                let f = opcode.one_of(&kinds).ok_or("no operation")?;
                let d = self.exact(of, operands, 0)?;
                Together::Reduce { f, signed: of.is_signed(), d, a: self.source(guard, of, operands, 1)? }
            }
        };
        Ok(Op::Together { f, mask })
    }

    fn narrow_sources(&mut self, guard: Guard, operands: &[Operand]) -> Result<[Row; 4]> {
        let mut rows = [NONE; 4];
        for (index, row) in rows.iter_mut().enumerate() {
            *row = self.source(guard, Scalar::B32, operands, index + 1)?;
        }
        Ok(rows)
    }

    fn load_matrix(&mut self, opcode: &Opcode, operands: &[Operand]) -> Result<Op> {
        opcode.ignore(&["sync", "aligned", "m8n8"]);
        let transpose = opcode.has("trans");
        let count = opcode.one_of(&[("x1", 1), ("x2", 2), ("x4", 4)]).ok_or("no count")?;
        let address = self.address(opcode.space(), nth(operands, 1)?)?;
        let (rows, _) = self.targets(Scalar::B32, nth(operands, 0)?)?;
        if rows.len() != count || address.space != Where::Shared {
            return Err("other forms are not modelled".into());
        }
        Ok(Op::Together { f: Together::LoadMatrix { rows: self.list(&rows), transpose, address }, mask: NONE })
    }

    fn multiply(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Op> {
        opcode.ignore(&["sync", "aligned", "row", "col"]);
        let of = match opcode.types[..] {
            [Scalar::F32, Scalar::Bf16, Scalar::Bf16, Scalar::F32] => Half::Bf16,
            [Scalar::F32, Scalar::F16, Scalar::F16, Scalar::F32] => Half::F16,
            _ => return Err("of these types it is not modelled".into()),
        };
        if !opcode.has("m16n8k16") {
            return Err("of this shape it is not modelled".into());
        }
        let (d, _) = self.targets(Scalar::F32, nth(operands, 0)?)?;
        let a = self.sources(guard, Scalar::B32, nth(operands, 1)?)?;
        let b = self.sources(guard, Scalar::B32, nth(operands, 2)?)?;
        let c = self.sources(guard, Scalar::F32, nth(operands, 3)?)?;
        if [d.len(), a.len(), b.len(), c.len()] != [4, 4, 2, 4] {
            return Err("the vectors have other lengths".into());
        }
        let [d, a, b, c] = [d, a, b, c].map(|rows| self.list(&rows));
        Ok(Op::Together { f: Together::MultiplyMatrix { of, d, from: [a, b, c] }, mask: NONE })
    }
}
