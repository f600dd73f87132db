//! Dense packing of b-bit codes into 32-bit words, least significant bit first, across word borders: the stream of
//! compressed-tensors ≥ 0.17 (`pack-quantized`) and, transposed, of GPTQ.

/// Words that hold `n` codes of `bits` bits.
pub fn words(n: usize, bits: u32) -> usize {
    (n * bits as usize).div_ceil(32)
}

/// Packs unsigned codes (< 2^bits) into `out`, which has [`words`] elements.
pub fn pack(codes: &[u8], bits: u32, out: &mut [u32]) {
    assert_eq!(out.len(), words(codes.len(), bits));
    let (mut window, mut filled, mut at) = (0u64, 0, 0);
    for code in codes {
        window |= (*code as u64) << filled;
        filled += bits;
        if filled >= 32 {
            out[at] = window as u32;
            at += 1;
            window >>= 32;
            filled -= 32;
        }
    }
    if filled > 0 {
        out[at] = window as u32;
    }
}

/// The reverse of [`pack`]: hands out `n` codes in order, from little-endian words.
#[inline(always)]
pub fn unpack(packed: &[u8], bits: u32, n: usize, mut each: impl FnMut(usize, u8)) {
    assert_eq!(packed.len(), 4 * words(n, bits));
    let mask = (1u64 << bits) - 1;
    let (mut window, mut filled) = (0u64, 0);
    let mut words = packed.chunks_exact(4);
    for k in 0..n {
        if filled < bits {
            let word = words.next().map_or(0, |w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
            window |= (word as u64) << filled;
            filled += 32;
        }
        each(k, (window & mask) as u8);
        window >>= bits;
        filled -= bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The word formula of the format: element e occupies bits e·b .. e·b+b−1 of the stream.
    #[test]
    fn every_bit_is_where_the_format_says() {
        for bits in 2..=8 {
            for n in [1, 7, 32, 33, 100] {
                let codes: Vec<u8> = (0..n).map(|i| ((i * 37 + 11) % (1 << bits)) as u8).collect();
                let mut packed = vec![0; words(n, bits)];
                pack(&codes, bits, &mut packed);
                for (e, code) in codes.iter().enumerate() {
                    for j in 0..bits as usize {
                        let bit = e * bits as usize + j;
                        assert_eq!(packed[bit / 32] >> (bit % 32) & 1, (*code as u32) >> j & 1, "{bits} {n} {e}");
                    }
                }
                let bytes: Vec<u8> = packed.iter().flat_map(|w| w.to_le_bytes()).collect();
                let mut back = vec![0; n];
                unpack(&bytes, bits, n, |k, code| back[k] = code);
                assert_eq!(back, codes);
            }
        }
    }
}
