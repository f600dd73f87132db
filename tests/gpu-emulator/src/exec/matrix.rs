//! Matrix instructions of a whole warp: `ldmatrix` (PTX ISA 9.7.13.4.15) and `mma.sync` m16n8k16 of bf16 or f16 with f32
//! accumulation (9.7.13.4.8). Products are exact and added in order of k in f32; tensor cores add in another order and
//! cut what they add.

use super::access::{Use, Wish};
use super::block::Core;
use super::fault::Fault;
use super::memory::addresses;
use super::op::*;
use super::registers::*;
use super::warp::Warp;

/// Bytes of a row of an 8 x 8 matrix.
const ROW: usize = 16;

impl Core<'_> {
    /// Lane 8 m + i gives the address of row i of matrix m; lane l gets elements 2 (l % 4) and the next of row l / 4.
    pub fn load_matrix(
        &mut self,
        warp: &mut Warp,
        pc: u32,
        rows: List,
        transpose: bool,
        address: &Address,
    ) -> Result<(), Fault> {
        let addresses = addresses(&warp.registers, address);
        let wish = Wish { pc, space: Where::Shared, addresses: &addresses, size: ROW, for_: Use::Load, strong: false };
        let rows = rows.of(&self.program().lists);
        let mut matrices = [[[0u16; 8]; 8]; 4];
        let mut left = u32::MAX >> (LANES - 8 * rows.len());
        while left != 0 {
            let placed = self.place(warp, &wish, left)?;
            for lane in lanes(placed.mask) {
                for (column, element) in matrices[lane / 8][lane % 8].iter_mut().enumerate() {
                    *element = self.shared.load(placed.offsets[lane] + 2 * column, 2) as u16;
                }
            }
            left &= !placed.mask;
        }
        for (matrix, row) in matrices.iter().zip(rows) {
            let element = |i: usize, j: usize| if transpose { matrix[j][i] } else { matrix[i][j] } as u32;
            let out = std::array::from_fn(|lane| {
                let (i, j) = (lane / 4, lane % 4 * 2);
                element(i, j) | element(i, j + 1) << 16
            });
            u32::set_row(&mut warp.registers, *row, u32::MAX, out);
        }
        Ok(())
    }
}

/// D (16 x 8) = A (16 x 16) B (16 x 8) + C. With g = lane / 4 and t = lane % 4, a lane holds of A rows g and g + 8 at
/// columns 2 t and 2 t + 8, of B column g at rows 2 t and 2 t + 8, of C and D rows g and g + 8 at columns 2 t.
pub fn multiply(r: &mut Registers, of: Half, d: &[Row], [a, b, c]: [&[Row]; 3]) {
    let (mut left, mut right, mut sum) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
    let pair = |bits: u32| [of.to_f32(bits as u16), of.to_f32((bits >> 16) as u16)];
    for lane in 0..LANES {
        let (g, t) = (lane / 4, lane % 4 * 2);
        for (index, row) in a.iter().enumerate() {
            let (i, k) = (g + index % 2 * 8, t + index / 2 * 8);
            left[i][k..k + 2].copy_from_slice(&pair(r.narrow[*row as usize][lane]));
        }
        for (index, row) in b.iter().enumerate() {
            let [even, odd] = pair(r.narrow[*row as usize][lane]);
            (right[t + index * 8][g], right[t + index * 8 + 1][g]) = (even, odd);
        }
        for (index, row) in c.iter().enumerate() {
            sum[g + index / 2 * 8][t + index % 2] = f32::from_bits(r.narrow[*row as usize][lane]);
        }
    }
    for (left, sum) in left.iter().zip(&mut sum) {
        for (x, right) in left.iter().zip(&right) {
            for (sum, y) in sum.iter_mut().zip(right) {
                *sum += x * y;
            }
        }
    }
    for (index, row) in d.iter().enumerate() {
        let out = std::array::from_fn(|lane| sum[lane / 4 + index / 2 * 8][lane % 4 * 2 + index % 2]);
        f32::set_row(r, *row, u32::MAX, out);
    }
}
