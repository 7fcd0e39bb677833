// Threads that go through layers together, piece by piece: with one start, and no other wait than
// for the layer before.
#pragma once
#include <vector>

#include "convolve.h"

namespace colorseg::cpu {

// Calls run(layer, next) for one layer after the other, on each of the threads.  next() says that
// the piece it returned last is done, and returns another one, or -1 when the whole layer is done.
//
// A thread has pieces of its own, the same at each call, whose maps its caches hold; then it takes
// what others have not begun, so that none waits for one that never came.
void run_relay(const std::vector<int64_t>& pieces, int64_t threads,
               FunctionRef<void(int64_t layer, NextPiece next)> run);

}  // namespace colorseg::cpu
