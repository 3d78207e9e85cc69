/* The server of counting.py for policies without a prefix cache, and that of grouped.py, one step
   after the other.

   Compiled by compiled.py, which has the words of the interface; counting.py and scheduler.py say
   why it goes as it does. Lengths and blocks fit into 62 bits, which compiled.py sees to; moments,
   in picoseconds, and sums over the steps take 128. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;
typedef __int128 wide;

enum { NOBODY, SHORT, WATERMARK, LIMIT, BUDGET, REASONS };
enum { DIGITS = 9, CLASSES = 128 << DIGITS }; /* what latency.Histogram keeps of a time */
enum { MOST_TENANTS = 64, OTHERS = -1 };               /* as in latency.py */
#define FOREVER ((i64)1 << 62)                         /* as in layout.py */

/* As in compiled.py, in this order. */
typedef struct {
  i64 blocks, watermark, ahead, most_running, budget, swapping, clients, timed;
  i64 step_ps, prompt_ps, read_ps, swap_ps; /* of a step, a token, a token, a block */
  i64 slo_ttft, slo_tpot, slo_e2e;
} Rules;

typedef struct {
  i64 prompt, output, arrival, tenant;
} Request;

typedef struct {
  i64 *classes;
  i64 count;
  wide sum, largest;
} Times;

/* latency._Tally: what was noted of a tenant. */
typedef struct {
  i64 tenant, completed, tokens, good;
  Times ttft, tpot, e2e;
} Tally;

typedef struct {
  Request of;
  i64 generated, computed, lost, blocks; /* counted.Group has these words */
  i64 seen; /* tokens by which blocks were given up last; -1: each step, since it decodes */
  i64 base, last, place;
  i64 before, behind; /* who was admitted before and after it, of those that run; -1: nobody */
  wide arrival, first, left;
  i64 tally; /* -1 before its first token */
} Group;

/* A group decodes until the end of a step, unless it has another place by then. */
typedef struct {
  i64 last, place, group;
} End;

typedef struct {
  End *ends;
  i64 count, room;
} Ends;

/* Tables of a group of layers: layout.GroupTables has the first four. */
typedef struct {
  i64 count, size, window, cap; /* size 0: a state */
} Tables;

/* Of one of these tables, for all who run. */
typedef struct {
  Tables of;
  i64 *growing, *leaving; /* who needs a block in a step, and gives one up, of those that decode */
  i64 phase;              /* where these are of this step */
  i64 full;               /* whose window is full; and when others' will be */
  Ends filling;
  i64 begun, gone, live;
  wide begun_sum, gone_sum, live_sum;
} Kind;

typedef struct {
  Rules rules;
  i64 (*pull)(void);
  const i64 *prompts, *outputs, *arrivals, *tenants;
  i64 pulled, read, exhausted;

  Request next;
  int more;
  Request *waiting;
  i64 head, tail, queue_room;
  i64 arrived, refused;

  Group *groups;
  i64 num_groups, group_room, *unused, num_unused, unused_room;
  i64 *preempted, num_preempted, preempted_room;
  i64 oldest, youngest, running, prefilling;
  Ends ends;
  Kind *kinds;
  i64 num_kinds, windows; /* whether any of them has one */
  i64 *fresh, num_fresh, fresh_room; /* whose prompts were computed in the last step */
  i64 *beginning, num_beginning, beginning_room;
  i64 *finished, num_finished, finished_room;

  i64 step, places, tokens, decoding, free, why, admitted_now, gave_way, swapped;
  wide clock, start, end;
  int started;

  i64 completed, peak_running, least;
  wide token_sum, free_sum, running_sum, prefilling_sum, queued_sum, computed_sum, waiting_free;
  i64 waits[REASONS];
  i64 admitted, preemptions, swapped_out, swapped_in;
  wide prompt_tokens, recomputed;
  Times itl;
  Tally *tallies;
  i64 num_tallies, tally_room;
} Server;

static i64 least(i64 a, i64 b) { return a < b ? a : b; }
static i64 most(i64 a, i64 b) { return a > b ? a : b; }
static i64 blocks_of(i64 tokens, i64 size) { return (tokens + size - 1) / size; }

/* An array with room for one more behind `count`. */
static void *roomy(void *array, i64 count, i64 *room, size_t each) {
  if (count < *room) return array;
  *room = most(64, 2 * *room);
  array = realloc(array, *room * each);
  if (!array) abort();
  return array;
}

#define PUSH(s, array, count, room, value) \
  ((s)->array = roomy((s)->array, (s)->count, &(s)->room, sizeof *(s)->array), \
   (s)->array[(s)->count++] = (value))

#define EACH_KIND(s, kind) (Kind *kind = (s)->kinds; kind < (s)->kinds + (s)->num_kinds; kind++)

/* layout.GroupTables has these words. */
static i64 begun(const Tables *of, i64 tokens) { return of->size ? blocks_of(tokens, of->size) : 1; }
static i64 live(const Tables *of, i64 tokens) { return of->size ? least(tokens, of->window) : 1; }
static i64 behind(const Tables *of, i64 seen) {
  return seen >= of->window ? (seen + 1 - of->window) / of->size : 0;
}

static wide most_blocks(const Server *s, wide tokens) {
  wide sum = 0;
  for EACH_KIND(s, kind) {
    wide blocks = kind->of.size ? (tokens + kind->of.size - 1) / kind->of.size : 1;
    sum += kind->of.count * (blocks < kind->of.cap ? blocks : kind->of.cap);
  }
  return sum;
}

static i64 begun_in_all(const Server *s, i64 tokens) {
  i64 sum = 0;
  for EACH_KIND(s, kind) sum += kind->of.count * begun(&kind->of, tokens);
  return sum;
}

static void add(Times *times, wide ps, i64 often) {
  uint64_t high = (uint64_t)(ps >> 64), low = (uint64_t)ps;
  int digits = high ? 128 - __builtin_clzll(high) : low ? 64 - __builtin_clzll(low) : 0;
  int shift = digits - DIGITS;
  times->classes[shift > 0 ? ((i64)shift << DIGITS) + (i64)(ps >> shift) : (i64)ps] += often;
  times->sum += ps * often;
  times->count += often;
  if (ps > times->largest) times->largest = ps;
}

/* -- who arrives: arrivals.Arrivals ------------------------------------------------------------ */

static void take_in(Server *s) {
  for (;;) {
    if (s->read == s->pulled) {
      s->read = s->pulled = 0;
      if (s->exhausted || !(s->pulled = s->pull())) {
        s->exhausted = 1;
        s->more = 0;
        return;
      }
    }
    i64 at = s->read++;
    s->next = (Request){s->prompts[at], s->outputs[at], s->arrivals[at], s->tenants[at]};
    /* The last token is never written. */
    if (most_blocks(s, (wide)s->next.prompt + s->next.output - 1) <= s->rules.blocks) return;
    s->arrived++;
    s->refused++;
  }
}

static void arrive(Server *s) {
  if (s->head && s->tail == s->queue_room) { /* the room in front is used again */
    memmove(s->waiting, s->waiting + s->head, (s->tail - s->head) * sizeof *s->waiting);
    s->tail -= s->head;
    s->head = 0;
  }
  PUSH(s, waiting, tail, queue_room, s->next);
  if (s->rules.clients >= 0) s->waiting[s->tail - 1].arrival = (i64)(s->clock / 1000);
  s->arrived++;
  take_in(s);
}

static void arrive_until_now(Server *s) {
  while (s->more && (wide)s->next.arrival * 1000 <= s->clock) arrive(s);
}

/* Somebody was taken, or has ended: who comes for that. */
static void refill(Server *s, i64 outstanding) {
  if (s->rules.timed) return;
  while (s->more && s->tail - s->head <= s->rules.ahead &&
         (s->rules.clients < 0 || outstanding + s->tail - s->head < s->rules.clients))
    arrive(s);
}

/* -- who decodes until when: a heap ------------------------------------------------------------ */

static int sooner(End a, End b) { return a.last < b.last; }

static void push_end(Ends *to, End end) {
  PUSH(to, ends, count, room, end);
  i64 at = to->count - 1;
  for (; at && sooner(end, to->ends[(at - 1) / 2]); at = (at - 1) / 2)
    to->ends[at] = to->ends[(at - 1) / 2];
  to->ends[at] = end;
}

static void pop_end(Ends *from) {
  End end = from->ends[--from->count];
  i64 at = 0, child;
  while ((child = 2 * at + 1) < from->count) {
    if (child + 1 < from->count && sooner(from->ends[child + 1], from->ends[child])) child++;
    if (!sooner(from->ends[child], end)) break;
    from->ends[at] = from->ends[child];
    at = child;
  }
  if (from->count) from->ends[at] = end;
}

/* -- who runs goes on -------------------------------------------------------------------------- */

/* Where the steps are counted in which it has one token more than some whole blocks, and `from`. */
static i64 *phase_at(i64 *steps, const Tables *of, i64 base, i64 from) {
  i64 at = (from - base) % of->size;
  return &steps[at < 0 ? at + of->size : at];
}

/* Its window is full from now on. */
static void fill(Kind *kind, const Group *group) {
  kind->full++;
  ++*phase_at(kind->leaving, &kind->of, group->base, kind->of.window);
}

static void give_up(Server *s, Kind *kind, i64 blocks) {
  kind->gone += blocks;
  s->free += kind->of.count * blocks;
}

static i64 gone(const Tables *of, const Group *group, i64 held) {
  return behind(of, group->seen < 0 ? held - 1 : group->seen);
}

/* Windows that are full after the step before. */
static void fill_windows(Server *s) {
  for EACH_KIND(s, kind)
    for (Ends *to = &kind->filling; to->count && to->ends[0].last <= s->step; pop_end(to))
      if (s->groups[to->ends[0].group].place == to->ends[0].place)
        fill(kind, &s->groups[to->ends[0].group]);
}

/* Before a step, blocks that no later token looks at are given up. */
static void slide(Server *s) {
  for (i64 at = 0; at < s->num_fresh; at++) {
    Group *group = &s->groups[s->fresh[at]];
    if (group->place < 0) continue;
    /* Of one that decodes, the last token's block is among those of the step. */
    i64 now = group->last < 0 ? group->computed : group->base + s->step - 2;
    for EACH_KIND(s, kind)
      if (kind->leaving) give_up(s, kind, behind(&kind->of, now) - behind(&kind->of, group->seen));
    group->seen = group->last < 0 ? now : -1;
  }
  s->num_fresh = 0;
  for EACH_KIND(s, kind)
    if (kind->leaving) give_up(s, kind, kind->leaving[kind->phase]);
}

static void leave(Server *s, i64 id, i64 held) {
  Group *group = &s->groups[id];
  *(group->before < 0 ? &s->oldest : &s->groups[group->before].behind) = group->behind;
  *(group->behind < 0 ? &s->youngest : &s->groups[group->behind].before) = group->before;
  s->running--;
  for EACH_KIND(s, kind) {
    const Tables *of = &kind->of;
    i64 blocks = begun(of, held), less = gone(of, group, held);
    kind->begun -= blocks;
    kind->gone -= less;
    kind->live -= live(of, held);
    s->free += of->count * (blocks - less);
    if (group->last < 0 || !of->size) continue;
    --*phase_at(kind->growing, of, group->base, 1);
    if (held < of->window) continue;
    kind->full--;
    --*phase_at(kind->leaving, of, group->base, of->window);
  }
  if (group->last >= 0) s->decoding--;
  s->tokens -= held;
  group->place = -1;
}

static void give_way(Server *s) {
  i64 id = s->youngest;
  Group *group = &s->groups[id];
  i64 held = group->last >= 0 ? group->base + s->step - 1 : group->computed;
  leave(s, id, held);
  if (group->last >= 0) group->generated = held + 1 - group->of.prompt;
  group->last = -1;
  group->lost = most(group->lost, held);
  if (s->prefilling == id) s->prefilling = -1;
  PUSH(s, preempted, num_preempted, preempted_room, id);
  s->preemptions++;
  if (group->tally >= 0 && group->left < 0) group->left = s->clock;
  if (s->rules.swapping) {
    i64 blocks = begun_in_all(s, held); /* there are no windows then */
    s->swapped_out += blocks;
    s->swapped += blocks;
  }
}

static void compute(Server *s, i64 id, i64 chunk) {
  Group *group = &s->groups[id];
  i64 target = group->of.prompt + group->generated, before = group->computed;
  s->recomputed += most(0, least(group->computed + chunk, group->lost) - group->computed);
  group->computed += chunk;
  s->tokens += chunk;
  group->seen = before;
  i64 blocks = begun_in_all(s, group->computed);
  s->free -= blocks - group->blocks;
  group->blocks = blocks;
  for EACH_KIND(s, kind) {
    kind->begun += begun(&kind->of, group->computed) - begun(&kind->of, before);
    kind->live += live(&kind->of, group->computed) - live(&kind->of, before);
  }
  if (s->windows) PUSH(s, fresh, num_fresh, fresh_room, id);
  s->prefilling = group->computed < target ? id : -1;
  if (group->computed < target) return;
  s->decoding++;
  group->base = target - s->step;
  group->last = group->of.prompt + group->of.output - 1 - group->base;
  for EACH_KIND(s, kind) {
    if (kind->of.size) ++*phase_at(kind->growing, &kind->of, group->base, 1);
    if (!kind->leaving) continue;
    End filled = {kind->of.window - group->base, group->place, id};
    if (target >= kind->of.window)
      fill(kind, group);
    else if (filled.last <= group->last)
      push_end(&kind->filling, filled);
  }
  PUSH(s, beginning, num_beginning, beginning_room, id);
  push_end(&s->ends, (End){group->last, group->place, id});
}

/* A prompt that is not computed whole has used up the budget, so nobody is admitted behind it:
   there is one of them at most. */
static i64 needed_by_all(const Server *s) {
  i64 sum = 0;
  for EACH_KIND(s, kind)
    if (kind->of.size) sum += kind->of.count * kind->growing[kind->phase];
  return sum;
}

/* Whether the blocks suffice if each, in order of admission, gives up its own before it takes. */
static int suffices(const Server *s, i64 chunk) {
  i64 free = s->free;
  for (i64 id = s->oldest; id >= 0; id = s->groups[id].behind) {
    const Group *group = &s->groups[id];
    i64 held = group->last < 0 ? group->computed : group->base + s->step - 1;
    i64 after = held + (group->last < 0 ? chunk : 1);
    for EACH_KIND(s, kind) {
      const Tables *of = &kind->of;
      i64 given_up = behind(of, held) - gone(of, group, held);
      free += of->count * (given_up - begun(of, after) + begun(of, held));
    }
    if (free < 0) return 0;
  }
  return 1;
}

static i64 grow(Server *s, i64 left) {
  i64 chunk = 0, more = 0;
  if (s->prefilling >= 0) {
    Group *group = &s->groups[s->prefilling];
    i64 target = group->of.prompt + group->generated;
    chunk = least(target - group->computed, left);
    more = begun_in_all(s, group->computed + chunk) - group->blocks;
  }
  s->gave_way = 0;
  while (needed_by_all(s) + (s->prefilling >= 0 ? more : 0) > s->free && !suffices(s, chunk)) {
    s->gave_way = 1;
    give_way(s);
  }
  if (s->windows) slide(s);
  s->free -= needed_by_all(s);
  for EACH_KIND(s, kind) {
    if (!kind->of.size) continue;
    kind->begun += kind->growing[kind->phase];
    kind->live += s->decoding - kind->full;
  }
  s->tokens += s->decoding;
  if (s->prefilling < 0) return 0;
  compute(s, s->prefilling, chunk);
  return chunk;
}

/* -- who comes in ------------------------------------------------------------------------------ */

static i64 new_group(Server *s, Request of) {
  Group group = {.of = of, .last = -1, .left = -1, .tally = -1};
  i64 id = s->num_unused ? s->unused[--s->num_unused] : s->num_groups;
  if (id == s->num_groups)
    PUSH(s, groups, num_groups, group_room, group);
  else
    s->groups[id] = group;
  s->admitted++;
  s->prompt_tokens += of.prompt;
  return id;
}

static i64 start(Server *s, i64 id, i64 left) {
  Group *group = &s->groups[id];
  group->computed = 0;
  if (s->rules.swapping && group->lost) {
    i64 blocks = begun_in_all(s, group->lost);
    group->computed = group->lost;
    s->swapped_in += blocks;
    s->swapped += blocks;
  }
  s->tokens += group->computed;
  group->blocks = begun_in_all(s, group->computed);
  s->free -= group->blocks;
  for EACH_KIND(s, kind) {
    kind->begun += begun(&kind->of, group->computed);
    kind->live += live(&kind->of, group->computed);
  }
  group->place = s->places++;
  group->before = s->youngest;
  group->behind = -1;
  *(s->youngest < 0 ? &s->oldest : &s->groups[s->youngest].behind) = id;
  s->youngest = id;
  s->running++;
  i64 chunk = least(group->of.prompt + group->generated - group->computed, left);
  compute(s, id, chunk);
  return chunk;
}

static i64 hindrance(Server *s, i64 target, i64 left) {
  i64 needed = (i64)most_blocks(s, target);
  if (needed > s->free) return SHORT;
  if (s->running && needed > s->free - s->rules.watermark) return WATERMARK;
  if (s->running >= s->rules.most_running) return LIMIT;
  return left ? NOBODY : BUDGET;
}

static i64 admit(Server *s, i64 left) {
  i64 prefill = 0, at = 0;
  s->why = NOBODY;
  while (at <= s->rules.ahead) {
    i64 again = s->num_preempted - 1 - at, nth = at - s->num_preempted, id = -1;
    Request *fresh = s->waiting + s->head + nth;
    i64 target;
    if (again >= 0) {
      id = s->preempted[again];
      target = s->groups[id].of.prompt + s->groups[id].generated;
    } else if (nth < s->tail - s->head) {
      target = fresh->prompt;
    } else {
      break;
    }
    i64 why = hindrance(s, target, left);
    if (why) {
      if (at == 0) s->why = why;
      if (why >= LIMIT) break;
      at++;
      continue;
    }
    if (again >= 0) {
      memmove(s->preempted + again, s->preempted + again + 1, at * sizeof *s->preempted);
      s->num_preempted--;
    } else {
      id = new_group(s, *fresh);
      memmove(s->waiting + s->head + 1, s->waiting + s->head, nth * sizeof *s->waiting);
      s->head++;
    }
    i64 chunk = start(s, id, left);
    left -= chunk;
    prefill += chunk;
    s->admitted_now = 1;
    refill(s, s->running + s->num_preempted);
  }
  return prefill;
}

/* -- how long it took, and what is counted ----------------------------------------------------- */

static i64 tally_of(Server *s, i64 tenant) {
  for (i64 at = 0; at < s->num_tallies; at++)
    if (s->tallies[at].tenant == tenant) return at;
  if (s->num_tallies >= MOST_TENANTS && tenant != OTHERS) return tally_of(s, OTHERS);
  Tally tally = {.tenant = tenant};
  i64 *classes = calloc(3 * CLASSES, sizeof *classes);
  if (!classes) abort();
  tally.ttft.classes = classes;
  tally.tpot.classes = classes + CLASSES;
  tally.e2e.classes = classes + 2 * CLASSES;
  PUSH(s, tallies, num_tallies, tally_room, tally);
  return s->num_tallies - 1;
}

/* latency.Watch.begin */
static void begin(Server *s, Group *group) {
  if (group->tally >= 0) {
    add(&s->itl, s->clock - group->left, 1);
    group->left = -1;
    return;
  }
  group->tally = tally_of(s, group->of.tenant);
  group->first = s->clock;
  group->arrival = -1;
  if (!s->rules.timed && s->rules.clients < 0) return;
  group->arrival = (wide)group->of.arrival * 1000;
  if (!s->started) s->start = group->arrival;
  s->started = 1;
  add(&s->tallies[group->tally].ttft, s->clock - group->arrival, 1);
}

/* latency.Watch.end */
static void end(Server *s, const Group *group) {
  const Rules *rules = &s->rules;
  Tally *tally = &s->tallies[group->tally];
  i64 output = group->of.output;
  wide now = s->clock, tpot = 0;
  s->completed++;
  s->end = now;
  tally->completed++;
  tally->tokens += output;
  if (output > 1) {
    tpot = (now - group->first) / (output - 1);
    add(&tally->tpot, tpot, 1);
  }
  if (group->arrival >= 0) add(&tally->e2e, now - group->arrival, 1);
  tally->good += !((rules->slo_ttft >= 0 && group->first - group->arrival > rules->slo_ttft) ||
                   (rules->slo_tpot >= 0 && tpot > rules->slo_tpot) ||
                   (rules->slo_e2e >= 0 && now - group->arrival > rules->slo_e2e));
}

static void settle(Server *s, i64 prefill) {
  const Rules *rules = &s->rules;
  i64 spent = rules->step_ps + prefill * rules->prompt_ps + s->tokens * rules->read_ps +
              s->swapped * rules->swap_ps;
  s->clock += spent;
  if (s->decoding > s->num_beginning) add(&s->itl, spent, s->decoding - s->num_beginning);
  for (i64 at = 0; at < s->num_beginning; at++) begin(s, &s->groups[s->beginning[at]]);
  s->num_beginning = 0;

  s->peak_running = most(s->peak_running, s->running);
  s->least = least(s->least, s->free);
  s->token_sum += s->tokens;
  s->free_sum += s->free;
  s->running_sum += s->running;
  s->computed_sum += prefill;
  s->prefilling_sum += s->prefilling >= 0;
  for EACH_KIND(s, kind) {
    kind->begun_sum += kind->begun;
    kind->gone_sum += kind->gone;
    kind->live_sum += kind->live;
  }
  if (s->why) {
    s->waits[s->why]++;
    s->queued_sum += s->num_preempted + s->tail - s->head;
    if (s->why <= WATERMARK) s->waiting_free += s->free;
  }
  for (; s->ends.count && s->ends.ends[0].last <= s->step; pop_end(&s->ends)) {
    End due = s->ends.ends[0];
    if (s->groups[due.group].place != due.place) continue; /* it gave way meanwhile */
    PUSH(s, finished, num_finished, finished_room, due.group);
    end(s, &s->groups[due.group]);
  }
  if (s->num_finished && rules->clients >= 0)
    refill(s, s->running - s->num_finished + s->num_preempted);
}

/* -- the interface ----------------------------------------------------------------------------- */

void server_free(Server *s) {
  for (i64 at = 0; at < s->num_tallies; at++) free(s->tallies[at].ttft.classes);
  if (s->kinds) {
    for EACH_KIND(s, kind) {
      free(kind->growing);
      free(kind->leaving);
      free(kind->filling.ends);
    }
  }
  free(s->kinds);
  free(s->fresh);
  free(s->tallies);
  free(s->waiting);
  free(s->groups);
  free(s->unused);
  free(s->preempted);
  free(s->ends.ends);
  free(s->beginning);
  free(s->finished);
  free(s);
}

Server *server_new(const Rules *rules, i64 num_tables, const Tables *tables, i64 (*pull)(void),
                   const i64 *prompts, const i64 *outputs, const i64 *arrivals, const i64 *tenants,
                   i64 *classes) {
  Server *s = calloc(1, sizeof *s);
  if (!s) return 0;
  s->rules = *rules;
  s->pull = pull;
  s->prompts = prompts;
  s->outputs = outputs;
  s->arrivals = arrivals;
  s->tenants = tenants;
  s->itl.classes = classes;
  s->num_kinds = num_tables;
  int there = !!(s->kinds = calloc(num_tables, sizeof *s->kinds));
  for (i64 at = 0; there && at < num_tables; at++) {
    Kind *kind = &s->kinds[at];
    kind->of = tables[at];
    if (!kind->of.size) continue;
    there = !!(kind->growing = calloc(kind->of.size, sizeof(i64)));
    if (kind->of.window == FOREVER) continue;
    s->windows = 1;
    if (there)
      there = !!(kind->leaving = calloc(kind->of.size, sizeof(i64)));
  }
  if (!there) {
    server_free(s);
    return 0;
  }
  s->oldest = s->youngest = s->prefilling = -1;
  s->free = s->least = rules->blocks;
  s->more = 1;
  take_in(s);
  refill(s, 0);
  return s;
}

static i64 draining(const Server *s) {
  return !(s->num_preempted || s->tail > s->head || s->more);
}

static i64 nobody_left(const Server *s) { return !s->running && draining(s); }

/* Those leave who got their last token in the step before; whoever is due arrives. */
static void turn_over(Server *s) {
  if (s->windows) fill_windows(s);
  for (i64 at = 0; at < s->num_finished; at++) {
    i64 id = s->finished[at];
    leave(s, id, s->groups[id].base + s->step);
    PUSH(s, unused, num_unused, unused_room, id);
  }
  s->num_finished = 0;
  if (!s->rules.timed || nobody_left(s)) return;
  arrive_until_now(s);
  if (s->running || s->num_preempted || s->tail > s->head) return;
  wide next = (wide)s->next.arrival * 1000;
  if (next > s->clock) s->clock = next;
  arrive_until_now(s);
}

static void take_step(Server *s) {
  s->step++;
  for EACH_KIND(s, kind)
    if (++kind->phase >= kind->of.size) kind->phase = 0;
  s->swapped = s->admitted_now = 0;
  i64 left = s->rules.budget < 0 ? INT64_MAX : most(0, s->rules.budget - s->decoding);
  i64 prefill = grow(s, left);
  s->why = SHORT;
  if (!s->gave_way) prefill += admit(s, left - prefill);
  settle(s, prefill);
}

/* Take a step, and those behind it until step `due`, or the one that completes so many, or one that
   admits the last request. Writes which step it is, how many are completed, and whether every
   request has been admitted. Returns whether one was in the last step; -1: nothing more to do. */
i64 server_run(Server *s, i64 due, i64 completed, i64 state[3]) {
  i64 admitted;
  do {
    turn_over(s);
    if (nobody_left(s)) {
      admitted = -1;
      break;
    }
    take_step(s);
    admitted = s->admitted_now;
  } while (s->step < due && s->completed < completed && !(admitted && draining(s)));
  state[0] = s->step;
  state[1] = s->completed;
  state[2] = draining(s);
  return admitted;
}

/* Numbers of 128 bits, which compiled.py names in this order: of a moment, and of the whole run. */
void server_moment(const Server *s, void *to) {
  wide numbers[] = {
      s->step,         s->token_sum,   s->free_sum,     s->running_sum,   s->prefilling_sum,
      s->queued_sum,   s->computed_sum, s->waiting_free, s->clock,         s->completed,
      s->arrived,      s->refused,     s->admitted,     s->preemptions,   s->swapped_out,
      s->swapped_in,   s->prompt_tokens, s->recomputed, s->waits[NOBODY], s->waits[SHORT],
      s->waits[WATERMARK], s->waits[LIMIT], s->waits[BUDGET]};
  memcpy(to, numbers, sizeof numbers);
  char *next = (char *)to + sizeof numbers;
  for EACH_KIND(s, kind) {
    wide sums[] = {kind->begun_sum, kind->gone_sum, kind->live_sum};
    memcpy(next, sums, sizeof sums);
    next += sizeof sums;
  }
}

void server_service(const Server *s, void *to) {
  wide numbers[] = {s->peak_running, s->least,   s->start,       s->end,
                    s->num_tallies,  s->itl.count, s->itl.sum, s->itl.largest};
  memcpy(to, numbers, sizeof numbers);
}

/* Of a tenant; returns the classes of its three times. */
const i64 *server_tally(const Server *s, i64 at, void *to) {
  const Tally *of = &s->tallies[at];
  wide numbers[] = {of->tenant,       of->completed,    of->tokens,     of->good,
                    of->ttft.count,   of->ttft.sum,     of->ttft.largest, of->tpot.count,
                    of->tpot.sum,     of->tpot.largest, of->e2e.count,  of->e2e.sum,
                    of->e2e.largest};
  memcpy(to, numbers, sizeof numbers);
  return of->ttft.classes;
}
