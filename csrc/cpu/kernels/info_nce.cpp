// What info_nce does per row before and after the pass over the queue. The work is N x D here and N x D x Q there, so
// these loops are plain: a row is brought to float32 (and to unit length) wherever it is needed.
#include "info_nce.h"

#include "unit.h"

namespace skelops::SKELOPS_LEVEL {
namespace {

template <typename T>
void convert(const T* from, int64_t D, float* to) {
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) store(to + d, load(from + d));
  for (; d < D; ++d) to[d] = to_float(from[d]);
}

float dot(const float* a, const float* b, int64_t D) {
  Vec total{};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) total += load(a + d) * load(b + d);
  if (d < D) total += load_first(a + d, D - d) * load_first(b + d, D - d);
  return sum(total);
}

// x (D) += factor * y
void add(float* x, float factor, const float* y, int64_t D) {
  for (int64_t d = 0; d < D; ++d) x[d] += factor * y[d];
}

// One row in float32, and its length (1 where nothing is normalised).
struct Row {
  float* data;
  float length;
};

Row read_raw(const InfoNCE& p, const Vectors& from, int64_t row, float* to) {
  from.dtype == Dtype::f32 ? convert(static_cast<const float*>(from.data) + row * p.D, p.D, to)
                           : convert(static_cast<const bf16*>(from.data) + row * p.D, p.D, to);
  if (!p.normalize) return {to, 1.0f};
  return {to, divisor(__builtin_sqrtf(dot(to, to, p.D)))};
}

Row read(const InfoNCE& p, const Vectors& from, int64_t row, float* to) {
  const Row x = read_raw(p, from, row, to);
  for (int64_t d = 0; p.normalize && d < p.D; ++d) to[d] /= x.length;
  return x;
}

// Entry i of row n: the key, then its extra positives, then its extra negatives.
struct Entry {
  const Vectors& tensor;
  int64_t row;
};

Entry entry(const InfoNCE& p, int64_t n, int64_t i) {
  if (i == 0) return {p.key, n};
  if (i <= p.P) return {p.extra_positives, n * p.P + i - 1};
  return {p.extra_negatives, n * p.E + i - 1 - p.P};
}

Row read(const InfoNCE& p, const Entry& e, float* to) { return read(p, e.tensor, e.row, to); }

// The gradient of what was read, from the gradient g of the row: through x / |x| only what is orthogonal to x remains. A vector
// that was too short is not of unit length, and only scaled.
void write_gradient(const InfoNCE& p, const Entry& e, const Row& x, float* g) {
  if (p.normalize && x.length > kSmallest) add(g, -dot(x.data, g, p.D), x.data, p.D);
  for (int64_t d = 0; d < p.D; ++d) {
    const int64_t at = e.row * p.D + d;
    const float value = g[d] / x.length;
    e.tensor.dtype == Dtype::f32 ? put(static_cast<float*>(e.tensor.gradient) + at, value)
                                 : put(static_cast<bf16*>(e.tensor.gradient) + at, value);
  }
}

// A log-sum-exp as most + log(total): kept apart, differences of two of them lose nothing to cancellation.
struct Sum {
  float most, total;
};

constexpr Sum kNothing{-__builtin_inff(), 0};

Sum log_sum_exp(const float* logits, int64_t n, Sum start) {
  float most = start.most;
  for (int64_t i = 0; i < n; ++i) most = most > logits[i] ? most : logits[i];
  float total = start.total == 0 ? 0.0f : start.total * __builtin_expf(start.most - most);
  for (int64_t i = 0; i < n; ++i) total += __builtin_expf(logits[i] - most);
  return {most, total};
}

}  // namespace

void info_nce_prepare(const InfoNCE& p, const InfoNCEPass& to, int64_t begin, int64_t end) {
  const int64_t entries = 1 + p.P + p.E;
  float* buffer = scratch(0, 2 * p.D);
  for (int64_t n = begin; n < end; ++n) {
    // The query is scaled in the product, by the factor that the logits of the queue get: what it rounds is common to all.
    const Row query = read_raw(p, p.query, n, buffer);
    const float factor = static_cast<float>(1 / (query.length * p.temperature));
    float* logits = p.logits + n * entries;
    for (int64_t i = 0; i < entries; ++i) {
      const float product = dot(query.data, read(p, entry(p, n, i), buffer + p.D).data, p.D);
      if (i == 0) to.thresholds[n] = product;
      logits[i] = factor * product;
    }
    to.factors[n] = factor;
  }
}

void info_nce_finish(const InfoNCE& p, const InfoNCEResult& r, int64_t begin, int64_t end) {
  const int64_t positives = 1 + p.P, entries = positives + p.E;
  float* buffer = scratch(0, p.D);
  for (int64_t n = begin; n < end; ++n) {
    float* logits = p.logits + n * entries;
    const Sum queue{r.lse[n], r.sum[n]};
    const Sum all = log_sum_exp(logits, entries, queue), positive = log_sum_exp(logits, positives, kNothing);
    const float log_total = __builtin_logf(all.total);
    r.loss[n] = (all.most - positive.most) + (log_total - __builtin_logf(positive.total / positives));
    r.lse[n] = all.most + log_total;
    for (int64_t i = positives; i < entries; ++i) r.rank[n] += logits[i] > logits[0];
    for (int64_t i = 0; i < entries; ++i) logits[i] = (logits[i] - all.most) - log_total;
    if (!r.mean) continue;
    float* mean = r.mean + n * p.D;
    const float share = queue.total == 0 ? 0.0f : queue.total / all.total * __builtin_expf(queue.most - all.most);
    for (int64_t d = 0; d < p.D; ++d) mean[d] *= share;
    for (int64_t i = 0; i < entries; ++i) add(mean, __builtin_expf(logits[i]), read(p, entry(p, n, i), buffer).data, p.D);
  }
}

void info_nce_backward(const InfoNCE& p, const InfoNCEUpstream& g, int64_t begin, int64_t end) {
  const int64_t positives = 1 + p.P, entries = positives + p.E;
  float* buffer = scratch(0, 4 * p.D);
  float *query_gradient = buffer + 2 * p.D, *gradient = buffer + 3 * p.D;
  const float scale = static_cast<float>(1 / p.temperature);
  for (int64_t n = begin; n < end; ++n) {
    const float* logits = p.logits + n * entries;
    const float loss = g.loss ? g.loss[n * g.loss_stride] * g.loss_factor : 0.0f, all = loss + (g.lse ? g.lse[n] : 0.0f);
    const Sum positive = log_sum_exp(logits, positives, kNothing);
    const Row query = read(p, {p.query, n}, buffer);
    for (int64_t d = 0; p.query.gradient && d < p.D; ++d) query_gradient[d] = scale * all * g.mean[n * p.D + d];
    for (int64_t i = 0; i < entries; ++i) {
      const Entry e = entry(p, n, i);
      if (!e.tensor.gradient && (i >= positives || !p.query.gradient)) continue;
      const Row x = read(p, e, buffer + p.D);
      const float pull = i < positives ? loss * __builtin_expf(logits[i] - positive.most) / positive.total : 0.0f;
      if (p.query.gradient) add(query_gradient, -scale * pull, x.data, p.D);
      if (!e.tensor.gradient) continue;
      const float factor = scale * (all * __builtin_expf(logits[i]) - pull);
      for (int64_t d = 0; d < p.D; ++d) gradient[d] = factor * query.data[d];
      write_gradient(p, e, x, gradient);
    }
    if (p.query.gradient) write_gradient(p, {p.query, n}, query, query_gradient);
  }
}

}  // namespace skelops::SKELOPS_LEVEL
