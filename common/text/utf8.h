// UTF-8, byte by byte. Surrogates, overlong forms and values above U+10FFFF are not UTF-8.
#ifndef COMMON_TEXT_UTF8_H
#define COMMON_TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Length in bytes of the character at `text` (left >= 1), its code in *code. 0: no character starts there; then *bad is
// the number of bytes to replace by one U+FFFD (the longest beginning of a character, at least 1), and *cut tells that
// those bytes are all that is left, so that more could complete them. code, bad and cut may be NULL.
size_t utf8_next(const char *text, size_t left, uint32_t *code, size_t *bad, bool *cut);
// The offset of the first byte that is no UTF-8, or `length`.
size_t utf8_valid(const char *text, size_t length);
// Text of a stranger as a terminal and a log may have it, in `out` (bytes >= 1; ends with 0), cut where it is too long,
// but within no character: tabs and ends of lines become spaces; other controls, marks that turn the direction of text,
// and what is no UTF-8 become '?'.
void utf8_printable(const char *text, size_t length, char *out, size_t bytes);

#endif
