//! Digests of integers: of every row of a linear as it is made, before it is packed, so that what is read back can be
//! compared with it without making it again. XXH3 with 128 bits (Y. Collet, xxHash): it runs at the speed of the cache, and
//! what it is to find are mistakes, not forgeries.

use std::collections::BTreeMap;

use twox_hash::XxHash3_128;

/// The digest of each linear that was written, by its name.
pub type Digests = BTreeMap<String, u128>;

/// One of each of some rows of `k` codes.
pub fn of_rows(codes: &[u8], k: usize) -> Vec<u128> {
    codes.chunks_exact(k).map(XxHash3_128::oneshot).collect()
}

/// That of a linear, from those of all its rows in order, which come in blocks of any size.
pub fn of_linear(rows: Vec<Vec<u128>>) -> u128 {
    XxHash3_128::oneshot(bytemuck::cast_slice(&rows.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any change of one code, and any two rows or columns that change places, change the digest; blocks do not.
    #[test]
    fn what_changes_a_digest() {
        let (n, k) = (12, 300);
        let codes: Vec<u8> = (0..n * k).map(|i| (i * 7 + i / 11) as u8 & 15).collect();
        let of = |codes: &[u8], rows: usize| of_linear(codes.chunks(rows * k).map(|block| of_rows(block, k)).collect());
        let whole = of(&codes, n);
        assert!([1, 4, 5].iter().all(|rows| of(&codes, *rows) == whole));
        for at in 0..n * k {
            let mut other = codes.clone();
            other[at] ^= 1;
            assert_ne!(of(&other, n), whole, "{at}");
            other[at] ^= 1;
            other.swap(at, (at + k) % (n * k));
            assert!(other == codes || of(&other, n) != whole, "{at}");
        }
        for row in 1..n {
            let mut other = codes.clone();
            other[..(row + 1) * k].rotate_right(k);
            assert_ne!(of(&other, n), whole, "rows 0 to {row}");
        }
    }
}
