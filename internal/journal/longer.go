package journal

// tornOrLonger judges a record of which only the sectors with text have its
// generation, though by its length there would be more: errTorn, it was written in
// part; or all of it is there, and its length flipped a bit, which would be a
// record that was acknowledged and left out. The length is in the checksum by an
// exclusive or, so that the checksum of what is there gives the length back if
// that is all: it then needs just these sectors. Of a record that was written in
// part it gives something random, which does so once in eight million.
func tornOrLonger(sector int, generation uint32, number uint64, sum uint32, text []byte) error {
	length := recordSum(generation, number, text[recordHead:]) ^ sum
	if uint64(length) <= uint64(len(text)) && sectorsOf(int(length))*room == len(text) {
		return damage("sector %d: record %d is whole with %d bytes, and says that it is longer", sector, number, length)
	}
	return errTorn
}
