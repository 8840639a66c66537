/** QR codes (ISO/IEC 18004) of short texts: byte mode, versions 1 to 20, error correction L. */

const MAX_VERSION = 20; // 97 modules a side: finer ones are not read from a screen
// By version, from 1: the error correction codewords of each block, and the number of blocks.
const CORRECTION = [7, 10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28];
const BLOCKS = [1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 6, 6, 6, 6, 7, 8];
const LEVEL_L = 0b01;
const BYTE_MODE = 0b0100;
const PADDING = [0xec, 0x11];
const FORMAT = { polynomial: 0x537, degree: 10, mask: 0x5412 };
const VERSION = { polynomial: 0x1f25, degree: 12 };

const range = (length) => Array.from({ length }, (_, index) => index);

/**
 * The code of `text` in the smallest version that holds it. A screen is never dirty: little correction will do.
 *
 * @param {string} text
 * @returns {{version: number, mask: number, size: number, modules: Uint8Array} | null} the modules row by row, 1 is
 *   dark; null where the text is too long
 */
export function qrCode(text) {
  const bytes = new TextEncoder().encode(text);
  for (let version = 1; version <= MAX_VERSION; version++) {
    const grid = new Grid(version);
    if (bytes.length <= room(grid)) return grid.filled(interleaved(grid, codewords(grid, bytes)));
  }
  return null;
}

const countBits = (version) => (version < 10 ? 8 : 16);
const dataLength = (grid) => grid.codewords - CORRECTION[grid.version - 1] * BLOCKS[grid.version - 1];
/** How many bytes fit beside the mode and the length. */
const room = (grid) => dataLength(grid) - Math.ceil((4 + countBits(grid.version)) / 8);

/** The data: mode, length, the bytes, four zeros at their end, and padding. */
function codewords(grid, bytes) {
  const bits = [];
  const push = (value, length) => bits.push(...range(length).map((index) => (value >> (length - 1 - index)) & 1));
  push(BYTE_MODE, 4);
  push(bytes.length, countBits(grid.version));
  for (const byte of bytes) push(byte, 8);
  push(0, 4); // mode and length leave just this many bits of a codeword
  const data = range(bits.length / 8).map((index) => parseInt(bits.slice(8 * index, 8 * index + 8).join(""), 2));
  const missing = dataLength(grid) - data.length;
  return [...data, ...range(missing).map((index) => PADDING[index % 2])];
}

/** Blocks of data with their correction, told one codeword of each in turn; the last blocks may be longer by one. */
function interleaved(grid, data) {
  const count = BLOCKS[grid.version - 1];
  const divisor = generator(CORRECTION[grid.version - 1]);
  const shortLength = Math.floor(data.length / count);
  const shortCount = count - (data.length % count);
  const blocks = range(count).map((index) => {
    const begin = index * shortLength + Math.max(0, index - shortCount);
    return data.slice(begin, begin + shortLength + (index < shortCount ? 0 : 1));
  });
  const inTurn = (lists) => range(Math.max(...lists.map((list) => list.length))).flatMap((at) => lists.flatMap((list) => list[at] ?? []));
  return [...inTurn(blocks), ...inTurn(blocks.map((block) => remainder(block, divisor)))];
}

/* Arithmetic in the field of 256 elements, with the polynomial 0x11d. */

function times(one, other) {
  let product = 0;
  for (let bit = 7; bit >= 0; bit--) {
    product = (product << 1) ^ ((product >> 7) * 0x11d);
    product ^= ((other >> bit) & 1) * one;
  }
  return product;
}

/** The product of (x - 2^i) for i below `degree`, without its leading 1. */
function generator(degree) {
  let product = [1];
  let root = 1;
  for (let i = 0; i < degree; i++) {
    product = [...product, 0].map((each, at) => each ^ (at ? times(product[at - 1], root) : 0));
    root = times(root, 2);
  }
  return product.slice(1);
}

function remainder(data, divisor) {
  let rest = divisor.map(() => 0);
  for (const byte of data) {
    const factor = byte ^ rest[0];
    rest = [...rest.slice(1), 0].map((each, at) => each ^ times(divisor[at], factor));
  }
  return rest;
}

/** `value` followed by its BCH remainder of `degree` bits. */
function withRemainder(value, { polynomial, degree }) {
  let rest = value << degree;
  for (let bit = 31 - degree; bit >= 0; bit--) if ((rest >> (bit + degree)) & 1) rest ^= polynomial << bit;
  return (value << degree) | rest;
}

/* The square. */

const MASKS = [
  (x, y) => (x + y) % 2,
  (x, y) => y % 2,
  (x) => x % 3,
  (x, y) => (x + y) % 3,
  (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2,
  (x, y) => ((x * y) % 2) + ((x * y) % 3),
  (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2,
  (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2,
];

class Grid {
  /** What every code of a version has: timing, finder and alignment patterns, and room for what says how to read it. */
  constructor(version) {
    this.version = version;
    this.size = 17 + 4 * version;
    this.modules = new Uint8Array(this.size ** 2);
    this.isFixed = new Uint8Array(this.size ** 2);
    for (const at of range(this.size)) {
      this.fix(6, at, at % 2 === 0);
      this.fix(at, 6, at % 2 === 0);
    }
    const end = this.size - 4;
    for (const [x, y] of [[3, 3], [end, 3], [3, end]]) this.fixRings(x, y, 4, [2, 4]);
    const places = this.alignments();
    const last = places.length - 1;
    for (const row of places.keys()) {
      for (const column of places.keys()) {
        const isByFinder = (row === 0 && (column === 0 || column === last)) || (row === last && column === 0);
        if (!isByFinder) this.fixRings(places[column], places[row], 2, [1]);
      }
    }
    this.fixFormat(0);
    if (version >= 7) this.fixVersion();
    this.codewords = Math.floor(this.isFixed.filter((isFixed) => !isFixed).length / 8);
  }

  fix(x, y, isDark) {
    if (x < 0 || y < 0 || x >= this.size || y >= this.size) return;
    this.modules[y * this.size + x] = isDark ? 1 : 0;
    this.isFixed[y * this.size + x] = 1;
  }

  /** A square around (x, y) whose rings at the distances `light` are light. */
  fixRings(x, y, radius, light) {
    const offsets = range(2 * radius + 1).map((index) => index - radius);
    for (const dx of offsets) for (const dy of offsets) this.fix(x + dx, y + dy, !light.includes(Math.max(Math.abs(dx), Math.abs(dy))));
  }

  /** Of the alignment patterns' centres, in either direction. */
  alignments() {
    if (this.version === 1) return [];
    const count = Math.floor(this.version / 7) + 2;
    const step = 2 * Math.ceil((this.size - 13) / (2 * count - 2));
    return [6, ...range(count - 1).map((index) => this.size - 7 - step * index).reverse()];
  }

  fixFormat(value) {
    const bits = withRemainder(value, FORMAT) ^ FORMAT.mask;
    const bit = (index) => (bits >> index) & 1;
    const end = this.size - 1;
    for (const index of range(15)) {
      // Beside the finder at the top left, past the timing patterns.
      const [near, far] = [index < 6 ? index : index + 1, index < 8 ? 15 - index : 14 - index];
      if (index < 8) this.fix(8, near, bit(index));
      else this.fix(index === 8 ? 7 : far, 8, bit(index));
      // Once more, shared by the other two.
      if (index < 8) this.fix(end - index, 8, bit(index));
      else this.fix(8, end - 14 + index, bit(index));
    }
    this.fix(8, this.size - 8, true);
  }

  fixVersion() {
    const bits = withRemainder(this.version, VERSION);
    for (const index of range(18)) {
      const [x, y] = [this.size - 11 + (index % 3), Math.floor(index / 3)];
      this.fix(x, y, (bits >> index) & 1);
      this.fix(y, x, (bits >> index) & 1);
    }
  }

  /** The finished code, by the mask that makes it easiest to read. */
  filled(words) {
    this.place(words);
    const codes = MASKS.map((mask, number) => {
      this.fixFormat((LEVEL_L << 3) | number);
      const modules = this.modules.map((module, at) => module ^ (!this.isFixed[at] && mask(at % this.size, Math.floor(at / this.size)) === 0 ? 1 : 0));
      return { version: this.version, mask: number, size: this.size, modules };
    });
    const penalties = codes.map(penalty);
    return codes[penalties.indexOf(Math.min(...penalties))];
  }

  /** In pairs of columns from the right, upwards and downwards in turn, around all that is fixed. */
  place(words) {
    let index = 0;
    let isUpwards = true;
    for (let right = this.size - 1; right > 0; right -= right === 8 ? 3 : 2) {
      const columns = right === 6 ? [5, 4] : [right, right - 1];
      for (const step of range(this.size)) {
        const y = isUpwards ? this.size - 1 - step : step;
        for (const x of columns) {
          if (this.isFixed[y * this.size + x]) continue;
          this.modules[y * this.size + x] = ((words[index >> 3] ?? 0) >> (7 - (index & 7))) & 1;
          index++;
        }
      }
      isUpwards = !isUpwards;
    }
  }
}

/** What makes a code hard to read: runs, blocks, what looks like a finder, and too much of one colour. */
function penalty({ size, modules }) {
  const rows = range(size).map((y) => modules.slice(y * size, (y + 1) * size).join(""));
  const columns = range(size).map((x) => range(size).map((y) => modules[y * size + x]).join(""));
  let points = 0;
  for (const line of [...rows, ...columns]) {
    for (const [run] of line.matchAll(/0{5,}|1{5,}/g)) points += run.length - 2;
    // Overlapping ones count each.
    points += 40 * [...line.matchAll(/(?=00001011101|10111010000)/g)].length;
  }
  for (const y of range(size - 1)) {
    for (const x of range(size - 1)) {
      const sum = modules[y * size + x] + modules[y * size + x + 1] + modules[(y + 1) * size + x] + modules[(y + 1) * size + x + 1];
      if (sum % 4 === 0) points += 3;
    }
  }
  const dark = modules.reduce((sum, module) => sum + module, 0);
  return points + 10 * Math.floor(Math.abs((20 * dark) / size ** 2 - 10));
}
