/* The tokens of a text for models of the BERT family that take no capitals.
 *
 * A text is split at blanks and around punctuation; of each word the longest beginning that the vocabulary has is taken, then the
 * longest that it has with ## in front, and so on; a word for which that fails, or of more than 100 characters, is [UNK].
 *
 * What BERT's own tokenizer does and this does not: only letters and punctuation of ASCII are lower-cased and split, accents stay,
 * Chinese characters are not words of their own, and special tokens are not looked for in the text. */
#ifndef WORDPIECE_H
#define WORDPIECE_H

#include <stddef.h>
#include <stdint.h>

typedef struct wordpiece wordpiece;

/* Reads a vocabulary, a token per line. NULL if that fails, and errno says why; EINVAL: [UNK], [CLS] or [SEP] is not in it. */
wordpiece *wordpiece_open(const char *path);

/* The tokens of a text between [CLS] and [SEP], at most max of them (2 or more): the end of a longer text is cut off. Returns how many,
 * or 0 if there is no memory. */
size_t wordpiece_encode(const wordpiece *w, const char *text, int64_t *ids, size_t max);

void wordpiece_close(wordpiece *w);

#endif
