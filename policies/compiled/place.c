/* Counts become CPUs and ways: policies/placement.py and ways.py. Everything is whole numbers, so answers are equal. */
#include <string.h>

#include "kernel.h"

enum { NOBODY = -1 };

/* Where the j-th ... of each row is counted: which of ``owner``'s entries lie beyond the first ``want`` of their row. */
static bool beyond(int64_t *seen, const int64_t *want, int64_t row) { return seen[row]++ >= want[row]; }

/* Placer._place_cores(): isolated VMs of one zone get whole cores. */
static void place_cores(const layout_t *l, int64_t zone, const int64_t *units, const int64_t *held, int64_t *owner,
                        int64_t *core_owner, place_scratch_t *s) {
    bool same = true;
    memset(s->want, 0, (size_t)l->n * sizeof *s->want);
    for (int64_t i = 0; i < l->n; i++) {
        if (!l->apart[i] || l->zone[i] != zone) continue;
        same = same && units[i * R + CPU] == held[i];
        s->want[i] = units[i * R + CPU] / l->per_core;
    }
    if (same) return;
    memset(s->have, 0, (size_t)l->n * sizeof *s->have);
    for (int64_t c = 0; c < l->cores; c++)
        if (l->core_zone[c] == zone && core_owner[c] != NOBODY && beyond(s->have, s->want, core_owner[c])) {
            core_owner[c] = NOBODY;
            s->freed[c] = true;
        } else s->freed[c] = false;
    memset(s->used, 0, (size_t)l->cores * sizeof *s->used);
    for (int64_t at = 0, u = 0; at < l->cpus; at++) {
        bool freed = s->freed[l->line_core[at]];
        for (int64_t end = u + l->per_cpu; u < end; u++) {
            if (owner[u] == NOBODY) continue;
            if (freed) s->touched[owner[u]] = true, owner[u] = NOBODY;
            else s->used[l->line_core[at]] += 1.0;
        }
    }
    int64_t missing = 0, free_cores = 0;
    for (int64_t i = 0; i < l->n; i++)
        if (s->want[i] > s->have[i]) missing += s->want[i] - s->have[i];
    if (!missing) return;
    for (int64_t c = 0; c < l->cores; c++)
        if (l->core_zone[c] == zone && core_owner[c] == NOBODY && l->whole[c]) s->order[free_cores++] = c;
    sort_rows(s->used, s->order, free_cores, s->merge); /* the emptiest first */
    if (free_cores > missing) free_cores = missing;
    memset(s->freed, 0, (size_t)l->cores * sizeof *s->freed);
    for (int64_t k = 0; k < free_cores; k++) s->freed[s->order[k]] = true;
    int64_t turn = 0, row = NOBODY, due = 0;
    for (int64_t c = 0; c < l->cores; c++) {
        if (!s->freed[c]) continue;
        while (!due) {
            row = l->by_rank[turn++];
            due = s->want[row] > s->have[row] ? s->want[row] - s->have[row] : 0;
        }
        core_owner[c] = row;
        due--;
    }
    for (int64_t at = 0; at < l->cpus; at++) {
        int64_t core = l->line_core[at];
        if (!s->freed[core]) continue;
        s->touched[core_owner[core]] = true;
        for (int64_t u = at * l->per_cpu; u < (at + 1) * l->per_cpu; u++) {
            if (owner[u] != NOBODY) s->evicted[owner[u]]++, s->touched[owner[u]] = true;
            owner[u] = core_owner[core];
        }
    }
}

/* Placer._place_slices(): shared VMs of one zone get slices of the CPUs that no isolated VM owns. */
static void place_slices(const layout_t *l, int64_t zone, const int64_t *units, const int64_t *held, int64_t *owner,
                         place_scratch_t *s) {
    bool any = false;
    int64_t receivers = 0;
    for (int64_t i = 0; i < l->n; i++) {
        s->have[i] = held[i] - s->evicted[i];
        s->evicted[i] = 0;
        s->change[i] = l->apart[i] || l->zone[i] != zone ? 0 : units[i * R + CPU] - s->have[i];
        any = any || s->change[i];
        s->want[i] = units[i * R + CPU];
        s->count[i] = 0;
        s->middle[i] = 0.0;
    }
    if (!any) return;
    for (int64_t u = 0; u < l->units; u++) {
        int64_t row = owner[u];
        if (row == NOBODY) continue;
        if (s->change[row] < 0 && beyond(s->count, s->want, row)) s->touched[row] = true, owner[u] = NOBODY;
        else if (s->change[row] > 0) s->middle[row] += (double)u;
    }
    /* Receivers in the order of where they stand, free units in that of the line: neighbours stay neighbours. */
    for (int64_t k = 0; k < l->n; k++) {
        int64_t row = l->by_rank[k];
        if (s->change[row] <= 0) continue;
        s->middle[row] = s->have[row] > 0 ? s->middle[row] / (double)s->have[row] : (double)l->units / 2.0;
        s->order[receivers++] = row;
    }
    sort_rows(s->middle, s->order, receivers, s->merge);
    int64_t turn = 0;
    for (int64_t at = 0; at < l->cpus && turn < receivers; at++) {
        if (l->zones > 1 && l->line_zone[at] != zone) continue;
        for (int64_t u = at * l->per_cpu; u < (at + 1) * l->per_cpu && turn < receivers; u++) {
            if (owner[u] != NOBODY) continue;
            owner[u] = s->order[turn];
            s->touched[owner[u]] = true;
            if (!--s->change[owner[u]]) turn++;
        }
    }
}

/* Placer.place() without the ways; returns whether anything changes, and then ``touched`` says whose CPUs may have. */
bool place(const layout_t *l, const int64_t *units, int64_t *owner, int64_t *core_owner, int64_t *held, bool *cpus,
           place_scratch_t *s) {
    bool differs = false;
    for (int64_t i = 0; i < l->n; i++) differs = differs || units[i * R + CPU] != held[i];
    if (!differs) return false;
    memset(s->touched, 0, (size_t)l->n);
    memset(s->evicted, 0, (size_t)l->n * sizeof *s->evicted);
    for (int64_t z = 0; z < l->zones; z++) {
        bool apart = false, shared = false;
        for (int64_t i = 0; i < l->n; i++) {
            apart = apart || (l->apart[i] && l->zone[i] == z);
            shared = shared || (!l->apart[i] && l->zone[i] == z);
        }
        if (apart) place_cores(l, z, units, held, owner, core_owner, s);
        if (shared) place_slices(l, z, units, held, owner, s);
    }
    /* Placer._note_changes() */
    for (int64_t i = 0; i < l->n; i++) {
        if (!s->touched[i]) continue;
        held[i] = 0;
        memset(cpus + i * l->cpus, 0, (size_t)l->cpus);
    }
    for (int64_t at = 0, u = 0; at < l->cpus; at++)
        for (int64_t end = u + l->per_cpu; u < end; u++) {
            int64_t row = owner[u];
            if (row == NOBODY || !s->touched[row]) continue;
            held[row]++;
            cpus[row * l->cpus + l->line_cpu[at]] = true;
        }
    return true;
}

/* WayLine._layout() of one host: where ``want`` ways of each VM start. ``first``: those who begin at the low end. */
void lay_out(int64_t n, int64_t ways, const int64_t *order, const bool *first, const int64_t *want, int64_t *start,
             const int64_t *had, ways_scratch_t *s) {
    for (int64_t i = 0; i < n; i++) {
        s->key[i] = (double)(start[i] * n + order[i]);
        s->order[i] = i;
    }
    sort_rows(s->key, s->order, n, s->merge);
    int64_t right = ways, total = 0;
    for (int64_t k = n - 1; k >= 0; k--) { /* the nearest on the right who stays */
        int64_t i = s->order[k];
        s->right[k] = right - (start[i] + had[i]);
        if (had[i] > 0 && want[i] > 0 && start[i] < right) right = start[i];
    }
    int64_t left = 0, most = INT64_MIN;
    for (int64_t k = 0; k < n; k++) {
        int64_t i = s->order[k], room = start[i] - left, at = start[i];
        if (had[i] > 0 && want[i] > 0) {
            int64_t back = want[i] - had[i] - (s->right[k] > 0 ? s->right[k] : 0);
            if (back > room) back = room;
            if (back > 0) at -= back;
            if (start[i] + had[i] > left) left = start[i] + had[i];
        }
        if (first[i] && want[i] > 0) at = 0;
        total += want[i];
        if (at + want[i] - total > most) most = at + want[i] - total;
        s->at[k] = most + total - want[i];
    }
    int64_t rest = 0, least = INT64_MAX;
    for (int64_t k = n - 1; k >= 0; k--) {
        int64_t i = s->order[k];
        rest += want[i];
        if (s->at[k] + rest < least) least = s->at[k] + rest;
        start[i] = (least < ways ? least : ways) - rest;
    }
}
