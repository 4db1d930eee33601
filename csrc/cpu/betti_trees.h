// merge trees of basins: one union-find sweep over critical edges gives the bars of an image, and those of its image in another.
//
// Keys are (value, index) in the order of the sweep, so that the smaller one enters first; a sweep in descending order has all its keys
//   complemented. Where two components meet, the one whose smallest key is larger dies: its basin gets the edge, unless the bar has length
//   zero.
// Payload: every component carries the smallest key of its cells in the order of another image; the larger of the two is the partner of
//   the edge in that image. Of cells that have entered only: one that enters at an edge greater than the merge's does not count. If the
//   smallest key of the whole basins is smaller than the merge's value, its cell has entered (there the images' values are at most the
//   other's), and whole basins are exact. Otherwise the arc is late: with positive intervals it has no partner. With all, cells enter one
//   by one in a second sweep, but only below merges whose partner can be a bar (late arcs lie below late arcs only).
// Cost: near-linear: two finds for each edge, and a sort and a find for each cell that enters by itself.
#pragma once
#include <numeric>

#include "betti_basins.h"

namespace nearlinear::betti {

// an edge between basins, in the order of the sweep
struct TreeEdge {
  uint32_t value, id, a, b;
  uint64_t key() const { return pack(value, id); }
};

class Roots {
 public:
  Roots(Buffer<uint32_t>& parent, uint32_t nodes) : parent_(parent.room(nodes)) { std::iota(parent_, parent_ + nodes, 0u); }
  uint32_t find(uint32_t x) {
    while (parent_[x] != x) x = parent_[x] = parent_[parent_[x]];
    return x;
  }
  void join(uint32_t child, uint32_t root) { parent_[child] = root; }
  void prefetch(uint32_t x) const { __builtin_prefetch(&parent_[x]); }

 private:
  uint32_t* parent_;
};

struct Entry {
  using key_t = uint64_t;
  key_t key;
  uint32_t cell, basin;
};

// the smallest key of each component in the order of another image
class Payload {
 public:
  Buffer<uint64_t> least;
  Buffer<uint8_t> hope;  // whether a component holds a cell that can be a partner
  Buffer<uint32_t> met;  // of a dead basin: the cell that it met in that image, or kNone

  void start(uint32_t basins) {
    std::fill_n(least.room(basins), basins, ~uint64_t{0});
    std::fill_n(hope.room(basins), basins, uint8_t{0});
    std::fill_n(met.room(basins), basins, kNone);
    merges_.clear();
    needed_ = false;
  }
  void add(uint32_t basin, uint64_t key) { least[basin] = std::min(least[basin], key); }

  bool late(uint32_t basin, uint32_t value) const { return value_of(least[basin]) >= value; }
  bool hopeful(uint32_t dead, uint32_t root, uint32_t value) const {
    return (late(dead, value) && hope[dead]) || (late(root, value) && hope[root]);
  }
  // a merge with a late side, in order; needed: its partner can be a bar
  void postpone(uint32_t dead, uint32_t root, uint64_t key, bool needed) {
    merges_.push_back({dead, late(dead, value_of(key)), root, late(root, value_of(key)), needed, key});
    needed_ = needed_ || needed;
    hope[root] |= hope[dead];
  }
  void join(uint32_t dead, uint32_t root) { least[root] = std::min(least[root], least[dead]); }
  uint64_t partner(uint32_t dead, uint32_t root) const { return std::max(least[dead], least[root]); }

  // second sweep. payload(cell): its key; entry(cell): key of the edge at which it enters, if it is no root
  template <typename payload_t, typename entry_t>
  void resolve(const Basins& basins, uint32_t cells, payload_t payload, entry_t entry) {
    if (!needed_) return;
    mark_needed(basins.count);
    uint64_t* entered = least.data();  // by now
    for (uint32_t b = 0; b < basins.count; ++b) entered[b] = limit_[b] == kNone ? 0 : payload(basins.root(b));
    entries_.clear();
    for (uint32_t c = 0; c < cells; ++c) {
      const uint32_t b = basins.found(c);
      if (payload(c) >= entered[b]) continue;  // nothing is smaller where nothing is needed
      const uint64_t key = entry(c);
      if (key < merges_[limit_[b]].key) entries_.push_back({key, c, b});
    }
    spare_.resize(entries_.size());
    replay(basins, sort_records(entries_.data(), spare_.data(), entries_.size()), payload);
  }

 private:
  struct Merge {
    uint32_t dead : 31, dead_late : 1, root : 30, root_late : 1, needed : 1;
    uint64_t key;
  };

  // limit of a basin: the last merge that needs to know which of its cells have entered
  void mark_needed(uint32_t basins) {
    std::fill_n(limit_.room(basins), basins, kNone);
    for (size_t i = merges_.size(); i-- > 0;) {
      const Merge& m = merges_[i];
      const uint32_t above = limit_[m.root], limit = above != kNone ? above : m.needed ? static_cast<uint32_t>(i) : kNone;
      limit_[m.root] = m.root_late ? limit : kNone;
      limit_[m.dead] = m.dead_late ? limit : kNone;
    }
  }

  template <typename payload_t>
  void replay(const Basins& basins, const Entry* entry, payload_t payload) {
    const Entry* const end = entry + entries_.size();
    uint64_t* entered = least.data();
    Roots forest(parent_, basins.count);
    for (const Merge& m : merges_) {
      for (; entry != end && entry->key < m.key; ++entry) {
        uint64_t& smallest = entered[forest.find(entry->basin)];
        smallest = std::min(smallest, payload(entry->cell));
      }
      const uint64_t dead = m.dead_late ? entered[m.dead] : 0, root = m.root_late ? entered[m.root] : 0;
      if (m.needed) met[m.dead] = index_of(std::max(dead, root) ^ basins.flip);
      if (m.dead_late && m.root_late) entered[m.root] = std::min(dead, root);
      forest.join(m.dead, m.root);
    }
  }

  Buffer<uint32_t> limit_, parent_;
  std::vector<Merge> merges_;
  std::vector<Entry> entries_, spare_;
  bool needed_ = false;
};

// bars of one sweep
class Tree {
 public:
  Buffer<uint32_t> bars;  // of each basin: the edge at which its component dies, kNone if that bar has length zero

  // edge_at(i): edges in the order of the sweep; rest(i): it joined nothing; can(j, cell): whether the cell can be a partner in image j
  template <size_t P, typename edge_t, typename rest_t, typename can_t>
  void sweep(const Basins& basins, size_t edges, edge_t edge_at, rest_t rest, const std::array<Payload*, P>& payloads, bool positive,
             can_t can) {
    const uint64_t* key = basins.key.data();
    const uint32_t flip = static_cast<uint32_t>(basins.flip);
    uint32_t* bar = bars.room(basins.count);
    std::fill_n(bar, basins.count, kNone);
    Roots forest(parent_, basins.count);
    for (size_t i = 0; i < edges; ++i) {
      if (i + kAhead < edges) {
        const TreeEdge next = edge_at(i + kAhead);
        forest.prefetch(next.a), forest.prefetch(next.b);
        __builtin_prefetch(&key[next.a]), __builtin_prefetch(&key[next.b]);
      }
      const TreeEdge edge = edge_at(i);
      const uint32_t a = forest.find(edge.a), b = forest.find(edge.b);
      if (a == b) {
        rest(i);
        continue;
      }
      const uint32_t dead = key[a] < key[b] ? b : a, root = a ^ b ^ dead;
      forest.join(dead, root);
      const bool lives = value_of(key[dead]) != edge.value;
      if (lives) bar[dead] = edge.id ^ flip;
      if constexpr (P > 0) meet(edge, dead, root, lives, flip, payloads, positive, can);
    }
  }

 private:
  template <size_t P, typename can_t>
  static void meet(TreeEdge edge, uint32_t dead, uint32_t root, bool lives, uint32_t flip, const std::array<Payload*, P>& payloads,
                   bool positive, can_t can) {
    std::array<bool, P> late;
    bool any = false, needed = lives;
    for (size_t j = 0; j < P; ++j) {
      const uint64_t partner = payloads[j]->partner(dead, root);
      late[j] = value_of(partner) >= edge.value;
      any = any || late[j];
      if (lives && !late[j]) payloads[j]->met[dead] = index_of(partner) ^ flip;
    }
    if (any && !positive) {
      for (size_t j = 0; j < P; ++j)
        needed = needed && (late[j] ? payloads[j]->hopeful(dead, root, edge.value) : can(j, payloads[j]->met[dead]));
      for (size_t j = 0; j < P; ++j)
        if (late[j]) payloads[j]->postpone(dead, root, edge.key(), needed);
    }
    for (size_t j = 0; j < P; ++j) payloads[j]->join(dead, root);
  }

  static constexpr size_t kAhead = 8;
  Buffer<uint32_t> parent_;
};

}  // namespace nearlinear::betti
