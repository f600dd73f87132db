//! What the lanes of a warp do together (PTX ISA 9.7.8.6, 9.7.12.7 and following). All lanes of `members` are here.

use super::block::Core;
use super::fault::Fault;
use super::op::*;
use super::registers::*;
use super::warp::Warp;

impl Core<'_> {
    pub fn exchange(&mut self, warp: &mut Warp, pc: u32, members: u32, alive: u32, f: &Together) -> Result<(), Fault> {
        let r = &mut warp.registers;
        match f {
            Together::Sync => warp.order.synchronize(members, alive),
            Together::Shuffle { f, d, p, from } => return shuffle(r, members, *f, *d, *p, *from),
            Together::Vote { f, d, p, negate } => vote(r, members, *f, *d, *p, *negate),
            Together::Match { width, d, a } => {
                let x = if *width == Width::W64 { u64::row(r, *a) } else { map(&u32::row(r, *a), u64::from) };
                let equal =
                    |value: u64| lanes(members).fold(0, |set, lane| set | (((x[lane] == value) as u32) << lane));
                let out = map(&x, equal);
                u32::set_row(r, *d, members, out);
            }
            Together::Reduce { f, signed, d, a } => reduce(r, members, *f, *signed, *d, *a),
            Together::LoadMatrix { rows, transpose, address } => {
                return self.load_matrix(warp, pc, *rows, *transpose, address);
            }
            Together::MultiplyMatrix { of, d, from } => {
                let lists = &self.program().lists;
                super::matrix::multiply(r, *of, d.of(lists), from.map(|list| list.of(lists)));
            }
        }
        Ok(())
    }
}

fn shuffle(r: &mut Registers, members: u32, f: Exchange, d: Row, p: Row, [a, b, clamp]: [Row; 3]) -> Result<(), Fault> {
    let (x, by, clamp) = (u32::row(r, a), u32::row(r, b), u32::row(r, clamp));
    let (mut out, mut in_range) = ([0; LANES], 0);
    for own in lanes(members) {
        let (lane, by) = (own as u32, by[own] & 31);
        let segment = clamp[own] >> 8 & 31;
        let (least, most) = (lane & segment, (lane & segment) | (clamp[own] & 31 & !segment));
        let (from, inside) = match f {
            Exchange::Up => (lane.wrapping_sub(by), lane as i32 - by as i32 >= most as i32),
            Exchange::Down => (lane + by, lane + by <= most),
            Exchange::Butterfly => (lane ^ by, lane ^ by <= most),
            Exchange::Index => (least | (by & !segment), least | (by & !segment) <= most),
        };
        let from = if inside { from as usize } else { own };
        if members >> from & 1 == 0 {
            return Err(
                Fault::wrong(format!("reads from lane {from}, which is not in the mask {members:#010x}")).by(own)
            );
        }
        out[own] = x[from];
        in_range |= (inside as u32) << own;
    }
    u32::set_row(r, d, members, out);
    if p != NONE {
        r.set_predicate(p, members, in_range);
    }
    Ok(())
}

fn vote(r: &mut Registers, members: u32, f: Vote, d: Row, p: Row, negate: bool) {
    let yes = (r.predicates[p as usize] ^ if negate { u32::MAX } else { 0 }) & members;
    let all = |holds: bool| if holds { u32::MAX } else { 0 };
    match f {
        Vote::Ballot => u32::set_row(r, d, members, [yes; LANES]),
        Vote::All => r.set_predicate(d, members, all(yes == members)),
        Vote::Any => r.set_predicate(d, members, all(yes != 0)),
        Vote::Uniform => r.set_predicate(d, members, all(yes == members || yes == 0)),
    }
}

fn reduce(r: &mut Registers, members: u32, f: Atomic, signed: bool, d: Row, a: Row) {
    let x = u32::row(r, a);
    let less = |x: u32, y: u32| if signed { (x as i32) < y as i32 } else { x < y };
    let all = lanes(members).map(|lane| x[lane]).reduce(|x, y| match f {
        Atomic::Add => x.wrapping_add(y),
        Atomic::Min => {
            if less(y, x) {
                y
            } else {
                x
            }
        }
        Atomic::Max => {
            if less(x, y) {
                y
            } else {
                x
            }
        }
        Atomic::And => x & y,
        Atomic::Or => x | y,
        _ => x ^ y,
    });
    u32::set_row(r, d, members, [all.unwrap_or_default(); LANES]);
}
