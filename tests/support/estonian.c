/* The order of strings in a locale where z is not the last letter: in Estonian it comes before t. */

static int place(unsigned char c) { return c == 'z' ? 2 * 's' + 1 : 2 * c; }

int strcoll(const char *a, const char *b) {
  while (*a && *a == *b) {
    a++, b++;
  }
  return place(*a) - place(*b);
}
