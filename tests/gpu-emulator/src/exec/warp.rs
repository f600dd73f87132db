//! A warp: groups of lanes that are at the same instruction, of which the one furthest back runs.

use super::block::Core;
use super::copy::Copies;
use super::fault::{Fault, Kind};
use super::op::{Guard, NONE, Op, Row, Together};
use super::order::WarpOrder;
use super::program::Program;
use super::registers::{InBank, LANES, Place, Registers, lanes};
use crate::memory::Bytes;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Runs,
    /// For lanes that take part in what it is at.
    Waits,
    AtBarrier,
}

#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub pc: u32,
    pub mask: u32,
    pub state: State,
}

pub struct Warp {
    pub place: Place,
    /// Those that the block has.
    pub lanes: u32,
    pub groups: Vec<Group>,
    pub registers: Registers,
    /// A stretch per lane.
    pub local: Bytes,
    pub order: WarpOrder,
    pub copies: Copies,
}

impl Default for Warp {
    fn default() -> Self {
        Warp {
            place: Place { warp: 0, block: [0; 3], blocks: [1; 3], threads: [1; 3] },
            lanes: 0,
            groups: Vec::new(),
            registers: Registers::default(),
            local: Bytes::new(0, 0),
            order: WarpOrder::default(),
            copies: Copies::default(),
        }
    }
}

impl Warp {
    pub fn start(&mut self, program: &Program, place: Place, lanes: usize, poison: u8) {
        self.registers.reset(program, &place);
        self.place = place;
        self.lanes = u32::MAX >> (LANES - lanes);
        self.groups.clear();
        self.groups.push(Group { pc: 0, mask: self.lanes, state: State::Runs });
        let bytes = program.local_bytes * LANES;
        if self.local.len() == bytes {
            self.local.reset(poison);
        } else {
            self.local = Bytes::new(bytes, poison);
        }
        self.order.reset();
        self.copies.clear();
    }

    /// The lanes that have not exited; those of a group that runs are not among them while it does.
    pub fn alive(&self) -> u32 {
        self.groups.iter().fold(0, |mask, group| mask | group.mask)
    }

    pub fn all_at_barrier(&self, pc: Option<u32>) -> bool {
        self.groups.iter().all(|group| group.state == State::AtBarrier && Some(group.pc) == pc)
            && self.alive() == self.lanes
    }

    pub fn pass_barrier(&mut self) {
        let pc = self.groups[0].pc + 1;
        self.groups.clear();
        self.groups.push(Group { pc, mask: self.lanes, state: State::Runs });
        self.order.reset();
    }

    /// Adds lanes to those that are there already.
    fn join(&mut self, pc: u32, mask: u32, state: State) {
        if mask == 0 {
            return;
        }
        match self.groups.iter_mut().find(|group| group.pc == pc && group.state == state) {
            Some(group) => group.mask |= mask,
            None => self.groups.push(Group { pc, mask, state }),
        }
    }

    fn furthest_back(&self) -> Option<usize> {
        let runs = self.groups.iter().enumerate().filter(|(_, group)| group.state == State::Runs);
        runs.min_by_key(|(_, group)| group.pc).map(|(index, _)| index)
    }
}

impl Core<'_> {
    /// Runs until every lane has exited, is at a barrier, or waits for another. Compiled twice, as
    /// [`super::arithmetic`] is, for the loops over addresses.
    pub fn run(&mut self, warp: &mut Warp) -> Result<(), Fault> {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has it.
            return unsafe { self.run_avx2(warp) };
        }
        self.run_plain(warp)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn run_avx2(&mut self, warp: &mut Warp) -> Result<(), Fault> {
        self.run_plain(warp)
    }

    #[inline(always)]
    fn run_plain(&mut self, warp: &mut Warp) -> Result<(), Fault> {
        let mut left = self.checks().budget;
        while let Some(index) = warp.furthest_back() {
            let mut group = warp.groups.swap_remove(index);
            let next = warp.furthest_back().map_or(u32::MAX, |index| warp.groups[index].pc);
            while group.mask != 0 && group.pc < next {
                let at = group.pc;
                left = left.saturating_sub(1);
                let stepped = match left {
                    0 => Err(Fault::wrong("the warp has not ended within the budget of instructions")),
                    _ => self.step(warp, &mut group),
                };
                stepped.map_err(|fault| self.locate(warp, at, group.mask, fault))?;
            }
            warp.join(group.pc, group.mask, State::Runs);
        }
        Ok(())
    }

    #[cold]
    fn locate(&self, warp: &Warp, pc: u32, mask: u32, fault: Fault) -> Fault {
        let lane = fault.lane.unwrap_or(mask.trailing_zeros() as usize % LANES);
        let thread = warp.place.thread(lane);
        Fault { what: format!("thread {thread:?}, {}: {}", self.instruction(pc), fault.what), ..fault }
    }

    /// One instruction of a group. Lanes that leave it are put aside; it ends with no lane if none goes on from here.
    #[inline(always)]
    fn step(&mut self, warp: &mut Warp, group: &mut Group) -> Result<(), Fault> {
        let program = self.program();
        let inst = &program.code[group.pc as usize];
        let active = group.mask
            & match inst.guard {
                Guard::Always => u32::MAX,
                Guard::If(p) => warp.registers.predicates[p as usize],
                Guard::Unless(p) => !warp.registers.predicates[p as usize],
            };
        self.executed += group.mask.count_ones() as u64;
        let pc = group.pc;
        group.pc += 1;
        if active == 0 {
            return Ok(());
        }
        match &inst.op {
            Op::Arithmetic(op) => {
                let wrong = (self.grid.arithmetic)(&mut warp.registers, op, &program.lists, active);
                if wrong != 0 {
                    return Err(Fault::wrong("an integer is divided by zero").by(wrong.trailing_zeros() as usize));
                }
            }
            Op::Load { address, elements, strong } => self.load(warp, pc, active, address, elements, *strong)?,
            Op::Store { address, elements, strong } => self.store(warp, pc, active, address, elements, *strong)?,
            Op::Branch { to } => {
                if active == group.mask {
                    group.pc = *to;
                } else {
                    // Both go on in their turn.
                    warp.join(*to, active, State::Runs);
                    warp.join(group.pc, group.mask & !active, State::Runs);
                    group.mask = 0;
                }
            }
            Op::Exit => group.mask &= !active,
            Op::Barrier => {
                if active != group.mask {
                    return Err(Fault::wrong("not all threads take part in the barrier"));
                }
                warp.join(pc, active, State::AtBarrier);
                group.mask = 0;
            }
            Op::Together { f, mask } => self.together(warp, group, pc, active, f, *mask)?,
            Op::Atomic { f, of, address, rows } => self.atomic(warp, pc, active, *f, *of, address, *rows)?,
            Op::Fence => self.fenced = true,
            Op::ActiveMask { d } => u32::set_row(&mut warp.registers, *d, active, [active; LANES]),
            Op::Trap => return Err(Fault::new(Kind::Trap, "trap").by(active.trailing_zeros() as usize)),
            Op::CopyAsync { to, from, size, from_size } => {
                self.copy_async(warp, pc, active, [to, from], *size, *from_size)?;
            }
            Op::CopyCommit => warp.copies.commit(active),
            Op::CopyWait { keep } => self.copy_wait(warp, pc, active, *keep)?,
        }
        Ok(())
    }

    /// Runs it for the lanes whose mask is complete; the others wait.
    fn together(
        &mut self,
        warp: &mut Warp,
        group: &mut Group,
        pc: u32,
        active: u32,
        f: &Together,
        mask: Row,
    ) -> Result<(), Fault> {
        let passing = group.mask & !active;
        let alive = warp.alive() | group.mask;
        let mut arrived = active;
        warp.groups.retain(|other| {
            let joins = other.pc == pc && other.state == State::Waits;
            arrived |= if joins { other.mask } else { 0 };
            !joins
        });
        let masks = if mask == NONE { [u32::MAX; LANES] } else { u32::row(&warp.registers, mask) };
        let (mut done, mut left) = (0, arrived);
        while left != 0 {
            let lane = left.trailing_zeros() as usize;
            let members = masks[lane];
            if members >> lane & 1 == 0 {
                return Err(Fault::wrong(format!("the lane is not in its own mask {members:#010x}")).by(lane));
            }
            if members & !alive != 0 {
                let missing = (members & !alive).trailing_zeros();
                let why = if warp.lanes >> missing & 1 == 1 { "has exited" } else { "is beyond the block" };
                return Err(
                    Fault::wrong(format!("the mask {members:#010x} names lane {missing}, which {why}")).by(lane)
                );
            }
            let same = lanes(arrived).fold(0, |set, lane| set | (((masks[lane] == members) as u32) << lane));
            if members & !same == 0 {
                self.exchange(warp, pc, members, alive, f)?;
                done |= members;
            }
            left &= !same;
        }
        warp.join(pc, arrived & !done, State::Waits);
        group.mask = passing | done;
        Ok(())
    }
}
