#!lua flags=allow-oom
-- Give blocks of the counters of which row ids are made, each counter once.
--
-- KEYS  1 ids   hash  bucket -> its next counter; "span <shard>" -> "<span> <master_replid>"
-- ARGV  1 field of the shard's span  2 a new span, or 0  3 counters in a span  4 the caller's clock as a counter
--       5 ms since 1970 at which counters begin  6 counters in a ms  then per bucket: bucket, count
-- Returns {span, span that the clock is in, the first counter of each bucket …}. Without counters nothing was given: the
-- shard needs a span that no server has had, since this one may have forgotten what it gave of the last, or used it up.
local call, size, replies = redis.call, ARGV[3] + 0, {}
local span, given_on = string.match(call('HGET', KEYS[1], ARGV[1]) or '', '(%d+) (%x+)')
local replid = string.match(call('INFO', 'replication'), 'master_replid:(%x+)')
span = tonumber(span or 0)
if span >= 2 ^ 31 then span, given_on = 0, nil end  -- nobody of ours has written it
if ARGV[2] + 0 > span then
  span, given_on = ARGV[2] + 0, replid
  call('HSET', KEYS[1], ARGV[1], string.format('%d %s', span, replid))
end
local time = call('TIME')
-- the earlier of two clocks: one that is ahead alone moves nothing
local now = math.min((time[1] * 1000 + math.floor(time[2] / 1000) - ARGV[5]) * ARGV[6], tonumber(ARGV[4]))
replies[1], replies[2] = span, math.floor(now / size)
if given_on ~= replid then return replies end
local buckets, given = {}, {}
for i = 7, #ARGV, 2 do buckets[#buckets + 1] = ARGV[i] end
if #buckets == 0 then return replies end
local nexts = call('HMGET', KEYS[1], unpack(buckets))
for i, bucket in ipairs(buckets) do
  local next = tonumber(nexts[i] or 0) or -1
  if next < 0 or next >= 2 ^ 53 then
    -- nobody of ours has written it, so what was given is not known: the shard's database gives a new span
    call('HDEL', KEYS[1], bucket, ARGV[1])
    return { replies[1], replies[2] }
  end
  local count, from = ARGV[6 + 2 * i] + 0, math.max(next, span * size)
  local start = math.max(from, now)
  if start + count > (span + 1) * size then start = from end
  if start + count > (span + 1) * size then return { replies[1], replies[2] } end
  replies[2 + i] = start
  given[2 * i - 1], given[2 * i] = bucket, string.format('%d', start + count)
end
call('HSET', KEYS[1], unpack(given))
return replies
