-- What wrk sends ($BENCH_LOAD, $BENCH_SIZE), and its outcome as one line of numbers for load.py.

local load = os.getenv("BENCH_LOAD")
local size = tonumber(os.getenv("BENCH_SIZE"))

if load == "browser" then -- twelve, and wrk adds Host
  wrk.headers = {
    ["Connection"] = "keep-alive",
    ["Cache-Control"] = "max-age=0",
    ["sec-ch-ua"] = '"Chromium";v="130", "Not?A_Brand";v="99"',
    ["sec-ch-ua-mobile"] = "?0",
    ["sec-ch-ua-platform"] = '"Linux"',
    ["Upgrade-Insecure-Requests"] = "1",
    ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
      .. "Chrome/130.0.0.0 Safari/537.36",
    ["Accept"] = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
    ["Sec-Fetch-Site"] = "none",
    ["Sec-Fetch-Mode"] = "navigate",
    ["Accept-Encoding"] = "gzip, deflate, br, zstd",
    ["Accept-Language"] = "en-GB,en;q=0.9,de;q=0.8",
  }
elseif load == "paths" then
  local number = 0
  function request()
    number = number + 1
    return wrk.format(nil, "/items/" .. number)
  end
elseif load == "post" then
  wrk.method = "POST"
  wrk.body = string.rep("x", size)
elseif load == "pipeline" then
  local batch
  function request()
    batch = batch or string.rep(wrk.format(), size)
    return batch
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("\nOUTCOME %d %d %d %d %d %d\n", summary.requests, summary.duration, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
