#!lua flags=allow-oom
-- Silence the bell, then list the buckets that may be applied now: in this order no wake-up can be lost.
--
-- KEYS  1 dirty  2 bell
-- ARGV  1 how many at most  2 prefix of the `big` keys
-- Returns a flat list: bucket, bytes of its largest op of late (0: small) …, oldest first.
redis.call('DEL', KEYS[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local buckets, bigs, reply = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1]), {}, {}
if #buckets == 0 then return reply end
for i = #buckets, 1, -1 do
  if not string.match(buckets[i], '^%d+$') or tonumber(buckets[i]) > 1024 then  -- nobody of ours has added it
    redis.call('ZREM', KEYS[1], buckets[i])
    table.remove(buckets, i)
  end
end
if #buckets == 0 then return reply end
for i, bucket in ipairs(buckets) do bigs[i] = ARGV[2] .. bucket end
bigs = redis.call('MGET', unpack(bigs))
for i, bucket in ipairs(buckets) do
  reply[2 * i - 1] = bucket
  reply[2 * i] = bigs[i] or '0'
end
return reply
