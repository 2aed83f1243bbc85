/* Byte-pair encoding by a list of merges, as `tokenizers` does it (models/bpe), over tables that are read as they lie.
 *
 * The tables are not trusted: `merges_new` holds every number in them against what it may be, and what it returns
 * cannot make `merges_encode` leave its arrays. Numbers are read byte by byte, so that they lie the same way anywhere.
 * Hashes are seeded by the caller, so that no table can be written to collide. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define ABSENT 0xFFFFu
#define NONE UINT32_MAX
#define BYTES 256
#define ASCII 128
/* Of a record of the merges: left, right and what they make, 24 bits each. */
#define RECORD 9
#define AHEAD 16

enum { IGNORE_MERGES = 1, BYTE_FALLBACK = 2, FUSE_UNKNOWN = 4 };
enum { BAD_MEMORY = -1, BAD_NAMES = -2, BAD_MERGES = -3, BAD_UNKNOWN = -4, BAD_BYTES = -5 };

typedef struct {
    uint64_t pair;
    uint32_t rank;
    uint32_t made;
} Merge;

typedef struct {
    const uint8_t *names;
    uint32_t *start;
    uint8_t *is_there;
    int64_t count;
    uint32_t *by_name;
    uint64_t by_name_mask;
    Merge *merges;
    uint64_t merges_mask;
    uint64_t seed;
    uint32_t unknown;
    uint32_t flags;
    uint32_t bytes[BYTES];
    uint32_t ascii[ASCII];
} Tables;

typedef struct {
    uint32_t id;
    int32_t before;
    int32_t behind;
    int32_t size;
} Symbol;

typedef struct {
    uint64_t order; /* rank, then place */
    uint32_t made;
} Due;

static uint64_t mixed(uint64_t x) {
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint64_t hash_of(const uint8_t *text, size_t size, uint64_t seed) {
    uint64_t hash = seed ^ size;
    while (size >= 8) {
        uint64_t part;
        memcpy(&part, text, 8);
        hash = mixed(hash ^ part) + seed;
        text += 8;
        size -= 8;
    }
    uint64_t rest = 0;
    memcpy(&rest, text, size);
    return mixed(hash ^ rest);
}

static uint32_t number24(const uint8_t *at) { return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16; }

static uint64_t slots_for(int64_t count) {
    uint64_t slots = 16;
    while (slots < 2 * (uint64_t)count) slots *= 2;
    return slots;
}

static uint32_t find_name(const Tables *t, const uint8_t *text, size_t size) {
    for (uint64_t at = hash_of(text, size, t->seed);; at++) {
        uint32_t id = t->by_name[at & t->by_name_mask];
        if (id == NONE) return NONE;
        if (t->start[id + 1] - t->start[id] == size && !memcmp(t->names + t->start[id], text, size)) return id;
    }
}

static const Merge *find_merge(const Tables *t, uint32_t left, uint32_t right) {
    uint64_t pair = (uint64_t)left << 32 | right;
    for (uint64_t at = mixed(pair ^ t->seed);; at++) {
        const Merge *merge = &t->merges[at & t->merges_mask];
        if (merge->made == NONE) return NULL;
        if (merge->pair == pair) return merge;
    }
}

static int read_names(Tables *t, const uint8_t *sizes, int64_t bytes) {
    uint64_t place = 0;
    for (int64_t id = 0; id < t->count; id++) {
        uint32_t size = sizes[2 * id] | (uint32_t)sizes[2 * id + 1] << 8;
        t->start[id] = (uint32_t)place;
        t->is_there[id] = size != ABSENT;
        if (size != ABSENT) place += size;
        if (place > (uint64_t)bytes) return BAD_NAMES;
        if (t->is_there[id] && size && (t->names[t->start[id]] & 0xC0) == 0x80) return BAD_NAMES;
    }
    t->start[t->count] = (uint32_t)place;
    if (place != (uint64_t)bytes) return BAD_NAMES;
    for (int64_t id = 0; id < t->count; id++) {
        if (!t->is_there[id]) continue;
        const uint8_t *name = t->names + t->start[id];
        size_t size = t->start[id + 1] - t->start[id];
        uint64_t at = hash_of(name, size, t->seed);
        for (; t->by_name[at & t->by_name_mask] != NONE; at++) {
            uint32_t other = t->by_name[at & t->by_name_mask];
            if (t->start[other + 1] - t->start[other] == size && !memcmp(t->names + t->start[other], name, size))
                return BAD_NAMES;
        }
        t->by_name[at & t->by_name_mask] = (uint32_t)id;
    }
    return 0;
}

static int makes(const Tables *t, uint32_t left, uint32_t right, uint32_t made) {
    if (left >= t->count || right >= t->count || made >= t->count) return 0;
    if (!t->is_there[left] || !t->is_there[right] || !t->is_there[made]) return 0;
    size_t a = t->start[left + 1] - t->start[left], b = t->start[right + 1] - t->start[right];
    const uint8_t *whole = t->names + t->start[made];
    return t->start[made + 1] - t->start[made] == a + b && !memcmp(whole, t->names + t->start[left], a) &&
           !memcmp(whole + a, t->names + t->start[right], b);
}

static uint64_t pair_of(const uint8_t *record) { return (uint64_t)number24(record) << 32 | number24(record + 3); }

static int read_merges(Tables *t, const uint8_t *records, int64_t count) {
    for (int64_t rank = 0; rank < count; rank++) {
        const uint8_t *record = records + RECORD * rank;
        /* The table is larger than a cache: its slots are asked for before they are needed. */
        if (rank + AHEAD < count)
            __builtin_prefetch(&t->merges[mixed(pair_of(record + RECORD * AHEAD) ^ t->seed) & t->merges_mask], 1);
        uint32_t left = number24(record), right = number24(record + 3), made = number24(record + 6);
        if (!makes(t, left, right, made)) return BAD_MERGES;
        uint64_t pair = pair_of(record), at = mixed(pair ^ t->seed);
        for (; t->merges[at & t->merges_mask].made != NONE; at++)
            if (t->merges[at & t->merges_mask].pair == pair) return BAD_MERGES;
        t->merges[at & t->merges_mask] = (Merge){pair, (uint32_t)rank, made};
    }
    return 0;
}

static int read_single(Tables *t, uint32_t unknown) {
    for (int i = 0; i < ASCII; i++) {
        uint8_t letter = (uint8_t)i;
        t->ascii[i] = find_name(t, &letter, 1);
    }
    t->unknown = unknown;
    if (unknown != NONE && (unknown >= t->count || !t->is_there[unknown])) return BAD_UNKNOWN;
    static const char digits[] = "0123456789ABCDEF";
    for (int i = 0; t->flags & BYTE_FALLBACK && i < BYTES; i++) {
        const uint8_t name[6] = {'<', '0', 'x', (uint8_t)digits[i >> 4], (uint8_t)digits[i & 15], '>'};
        t->bytes[i] = find_name(t, name, sizeof name);
        if (t->bytes[i] == NONE) return BAD_BYTES;
    }
    return 0;
}

API void merges_free(Tables *t) {
    if (!t) return;
    free(t->start);
    free(t->is_there);
    free(t->by_name);
    free(t->merges);
    free(t);
}

/* The names lie one behind the other, each from the beginning of a letter on, `sizes` are 16 bits each, `ABSENT` where an id has none; they stay the caller's
 * and must stay where they are. `why` becomes 0 or what is wrong, in which case there are no tables. */
API Tables *merges_new(const uint8_t *sizes, int64_t count, const uint8_t *names, int64_t bytes, const uint8_t *records,
                       int64_t merges, uint32_t unknown, uint32_t flags, uint64_t seed, int32_t *why) {
    *why = BAD_MEMORY;
    Tables *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    uint64_t names_slots = slots_for(count), merges_slots = slots_for(merges);
    t->names = names;
    t->count = count;
    t->seed = seed;
    t->flags = flags;
    t->by_name_mask = names_slots - 1;
    t->merges_mask = merges_slots - 1;
    t->start = malloc((size_t)(count + 1) * sizeof *t->start);
    t->is_there = malloc((size_t)count + 1);
    t->by_name = malloc(names_slots * sizeof *t->by_name);
    t->merges = malloc(merges_slots * sizeof *t->merges);
    if (t->start && t->is_there && t->by_name && t->merges) {
        memset(t->by_name, 0xFF, names_slots * sizeof *t->by_name);
        memset(t->merges, 0xFF, merges_slots * sizeof *t->merges);
        *why = read_names(t, sizes, bytes);
        if (!*why) *why = read_merges(t, records, merges);
        if (!*why) *why = read_single(t, unknown);
        if (!*why) return t;
    }
    merges_free(t);
    return NULL;
}

/* The id of a name, or -1. */
API int64_t merges_find(const Tables *t, const uint8_t *name, int64_t size) {
    uint32_t id = find_name(t, name, (size_t)size);
    return id == NONE ? -1 : (int64_t)id;
}

/* Where a name begins, or -1 where there is none. */
API int64_t merges_name(const Tables *t, int64_t id, int64_t *size) {
    if (id < 0 || id >= t->count || !t->is_there[id]) return -1;
    *size = t->start[id + 1] - t->start[id];
    return t->start[id];
}

static int letter_size(uint8_t first) { return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4; }

static int32_t add(Symbol *symbols, int32_t count, uint32_t id, int32_t size) {
    symbols[count] = (Symbol){id, count - 1, -1, size};
    if (count) symbols[count - 1].behind = count;
    return count + 1;
}

/* The letters of a word as symbols; at most one for each of its bytes. */
static int32_t spell(const Tables *t, const uint8_t *word, int32_t size, Symbol *symbols) {
    int32_t count = 0, unknown = 0;
    for (int32_t at = 0, letter; at < size; at += letter) {
        letter = letter_size(word[at]);
        if (letter > size - at) letter = size - at;
        uint32_t id = letter == 1 && word[at] < ASCII ? t->ascii[word[at]] : find_name(t, word + at, (size_t)letter);
        if (id == NONE && t->flags & BYTE_FALLBACK) {
            for (int32_t i = 0; i < letter; i++) count = add(symbols, count, t->bytes[word[at + i]], 1);
        } else if (id != NONE) {
            if (unknown) count = add(symbols, count, t->unknown, unknown);
            unknown = 0;
            count = add(symbols, count, id, letter);
        } else if (t->unknown != NONE) {
            if (unknown && !(t->flags & FUSE_UNKNOWN)) {
                count = add(symbols, count, t->unknown, unknown);
                unknown = 0;
            }
            unknown += letter;
        }
    }
    return unknown ? add(symbols, count, t->unknown, unknown) : count;
}

static void sink(Due *heap, int64_t count, int64_t at) {
    Due moved = heap[at];
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1].order < heap[child].order) child++;
        if (moved.order <= heap[child].order) break;
        heap[at] = heap[child];
    }
    heap[at] = moved;
}

static void push(Due *heap, int64_t *count, const Merge *merge, int32_t place) {
    if (!merge) return;
    uint64_t order = (uint64_t)merge->rank << 32 | (uint32_t)place;
    int64_t at = (*count)++;
    for (; at && order < heap[(at - 1) / 2].order; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = (Due){order, merge->made};
}

static Due pop(Due *heap, int64_t *count) {
    Due first = heap[0];
    heap[0] = heap[--*count];
    if (*count) sink(heap, *count, 0);
    return first;
}

static const Merge *merge_at(const Tables *t, const Symbol *symbols, int32_t left) {
    int32_t right = symbols[left].behind;
    return right < 0 ? NULL : find_merge(t, symbols[left].id, symbols[right].id);
}

/* Merge what is due until nothing is. `heap` has room for three of each symbol: one at the beginning, two a merge. What
 * became due and has changed since is left alone, unless what stands there now makes the same token: so does the
 * library. */
static void merge_all(const Tables *t, Symbol *symbols, int32_t count, Due *heap) {
    int64_t due = 0;
    for (int32_t i = 0; i + 1 < count; i++) {
        const Merge *merge = merge_at(t, symbols, i);
        if (merge) heap[due++] = (Due){(uint64_t)merge->rank << 32 | (uint32_t)i, merge->made};
    }
    for (int64_t i = due / 2; i-- > 0;) sink(heap, due, i);
    while (due) {
        Due next = pop(heap, &due);
        int32_t left = (int32_t)(uint32_t)next.order;
        if (!symbols[left].size || symbols[left].behind < 0) continue;
        const Merge *merge = merge_at(t, symbols, left);
        if (!merge || merge->made != next.made) continue;
        Symbol *right = &symbols[symbols[left].behind];
        symbols[left].id = next.made;
        symbols[left].size += right->size;
        symbols[left].behind = right->behind;
        right->size = 0;
        if (symbols[left].behind >= 0) symbols[symbols[left].behind].before = left;
        if (symbols[left].before >= 0) push(heap, &due, merge_at(t, symbols, symbols[left].before), symbols[left].before);
        push(heap, &due, merge_at(t, symbols, left), left);
    }
}

/* The ids of words that lie one behind the other, and how many bytes of its word each of them covers. `ids` and `sizes`
 * have room for a number for each byte. How many there are, or BAD_MEMORY. A word has less than 2^30 bytes. */
API int64_t merges_encode(const Tables *t, const uint8_t *text, const uint32_t *words, int64_t count, uint32_t *ids,
                          uint32_t *sizes) {
    uint32_t longest = 0;
    for (int64_t i = 0; i < count; i++) longest = words[i] > longest ? words[i] : longest;
    Symbol *symbols = malloc(((size_t)longest + 1) * sizeof *symbols);
    Due *heap = malloc((3 * (size_t)longest + 1) * sizeof *heap);
    int64_t made = symbols && heap ? 0 : BAD_MEMORY;
    for (int64_t i = 0; made >= 0 && i < count; text += words[i++]) {
        if (!words[i]) continue;
        uint32_t whole = t->flags & IGNORE_MERGES ? find_name(t, text, words[i]) : NONE;
        if (whole != NONE) {
            sizes[made] = words[i];
            ids[made++] = whole;
            continue;
        }
        int32_t symbol_count = spell(t, text, (int32_t)words[i], symbols);
        merge_all(t, symbols, symbol_count, heap);
        for (int32_t at = 0; at < symbol_count && at >= 0; at = symbols[at].behind) {
            sizes[made] = (uint32_t)symbols[at].size;
            ids[made++] = symbols[at].id;
        }
    }
    free(symbols);
    free(heap);
    return made;
}
