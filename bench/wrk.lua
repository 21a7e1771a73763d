-- What wrk found, as one line of JSON after its own report. Latencies in microseconds.
done = function(summary, latency, requests)
  io.write(string.format(
    '\nJSON {"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "errors": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
      + summary.errors.timeout))
end
