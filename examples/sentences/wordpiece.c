#include "wordpiece.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CHARACTERS = 100 };

typedef struct {
    const char *text;
    int64_t id;
} token;

struct wordpiece {
    char *file;
    token *tokens; /* in the order of their texts */
    size_t count;
    int64_t unknown, begin, end;
};

static int by_text(const void *a, const void *b) { return strcmp(((const token *)a)->text, ((const token *)b)->text); }

/* The token with this text, or -1. */
static int64_t find(const wordpiece *w, const char *text) {
    token key = {text, 0};
    const token *found = bsearch(&key, w->tokens, w->count, sizeof key, by_text);
    return found == NULL ? -1 : found->id;
}

/* A whole file with a zero behind it. */
static char *read_file(const char *path) {
    FILE *f = fopen(path, "rb");
    char *bytes = NULL;
    long size;
    if (f == NULL) return NULL;
    if (fseek(f, 0, SEEK_END) == 0 && (size = ftell(f)) >= 0 && fseek(f, 0, SEEK_SET) == 0) {
        bytes = malloc((size_t)size + 1);
        if (bytes != NULL) bytes[fread(bytes, 1, (size_t)size, f)] = '\0';
    }
    fclose(f);
    return bytes;
}

wordpiece *wordpiece_open(const char *path) {
    wordpiece *w = calloc(1, sizeof *w);
    if (w == NULL) return NULL;
    w->file = read_file(path);
    if (w->file == NULL) goto failed;

    size_t lines = 1;
    for (const char *p = w->file; *p != '\0'; p++) lines += *p == '\n';
    w->tokens = malloc(lines * sizeof *w->tokens);
    if (w->tokens == NULL) goto failed;
    for (char *line = w->file; *line != '\0'; w->count++) {
        char *next = line + strcspn(line, "\r\n");
        if (*next == '\r') *next++ = '\0';
        if (*next == '\n') *next++ = '\0';
        w->tokens[w->count].text = line;
        w->tokens[w->count].id = (int64_t)w->count;
        line = next;
    }
    qsort(w->tokens, w->count, sizeof *w->tokens, by_text);
    w->unknown = find(w, "[UNK]");
    w->begin = find(w, "[CLS]");
    w->end = find(w, "[SEP]");
    if (w->unknown >= 0 && w->begin >= 0 && w->end >= 0) return w;
    errno = EINVAL;
failed:
    wordpiece_close(w);
    return NULL;
}

void wordpiece_close(wordpiece *w) {
    if (w == NULL) return;
    free(w->tokens);
    free(w->file);
    free(w);
}

static int is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static int is_punctuation(char c) {
    return (c >= '!' && c <= '/') || (c >= ':' && c <= '@') || (c >= '[' && c <= '`') || (c >= '{' && c <= '~');
}

/* The pieces of a word, at most max; buffer has room for the word, ## and a zero. */
static size_t pieces(const wordpiece *w, const char *word, size_t length, char *buffer, int64_t *ids, size_t max) {
    size_t count = 0, characters = 0;
    for (size_t i = 0; i < length; i++) characters += ((unsigned char)word[i] & 0xC0) != 0x80;
    for (size_t from = 0; from < length && characters <= MAX_CHARACTERS;) {
        size_t prefix = from > 0 ? 2 : 0, taken = length - from;
        int64_t id = -1;
        memcpy(buffer, "##", prefix);
        memcpy(buffer + prefix, word + from, taken);
        for (; taken > 0 && id < 0; taken -= id < 0) {
            buffer[prefix + taken] = '\0';
            id = find(w, buffer);
        }
        if (id < 0) break;
        if (count < max) ids[count] = id;
        count++;
        from += taken;
        if (from == length) return count < max ? count : max;
    }
    if (max > 0) ids[0] = w->unknown;
    return max > 0;
}

size_t wordpiece_encode(const wordpiece *w, const char *text, int64_t *ids, size_t max) {
    size_t length = strlen(text), count = 0;
    char *lower = malloc(length + 1), *buffer = malloc(length + 3);
    if (lower != NULL && buffer != NULL) {
        for (size_t i = 0; i <= length; i++) lower[i] = (char)(text[i] >= 'A' && text[i] <= 'Z' ? text[i] + ('a' - 'A') : text[i]);
        ids[count++] = w->begin;
        for (size_t i = 0, n; i < length && count + 1 < max; i += n) {
            for (n = 0; i + n < length && !is_blank(lower[i + n]) && !is_punctuation(lower[i + n]);) n++;
            if (n == 0) n = 1;
            if (!is_blank(lower[i])) count += pieces(w, lower + i, n, buffer, ids + count, max - 1 - count);
        }
        ids[count++] = w->end;
    }
    free(lower);
    free(buffer);
    return count;
}
