#!lua flags=allow-oom
-- After a commit: publish the watermarks, un-dirty what is drained, forget the attempts, and take the bell if anything
-- is left.
-- A log that ends behind its watermark has forgotten entries: the shard's next reconcile is due at once. Where ops are
-- large that is not looked at here.
-- Runs although memory is full: draining must never need free memory.
--
-- KEYS  1 dirty  2 bell  3 marks (hash bucket -> "<epoch>-<seq>", a copy for readers)  4 attempts
--       5 lease on the shard's reconcile  6 counts (hash counter -> n)  7 batches (list of notes, newest first)
--       then one log per bucket
-- ARGV  1 ms until the bell counts as lost  2 delay ms of the buckets that are left  3 most counters
--       4 a note of the batch, empty: none  5 most notes  6 who stays at the shard, '' for nobody
--       7 prefix of the `big` keys
--       then per log: bucket, epoch, seq, own note of its attempt  then counters, each with what is added
-- Returns "<ring: 0|1> <buckets still dirty>". Who stays at the shard goes on, or leaves, instead of ringing
-- at once.
-- A note from this mark on that is not the caller's own is another worker's, which goes on behind it: it stays.
-- A watermark that was published once does not go back: the caller may publish late.
local function past(text, epoch, seq)  -- whether the position that a text begins with is before another
  local e, s = string.match(text or '', '^(%d+)-(%-?%d+)')
  if not e then return true end
  if e == epoch then return tonumber(s) < tonumber(seq) end
  return tonumber(e) < tonumber(epoch)
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local buckets, bigs, marks, done, drained, more = {}, {}, {}, {}, {}, {}
for i = 8, #KEYS do
  buckets[#buckets + 1] = ARGV[4 * (i - 8) + 8]
  bigs[#bigs + 1] = ARGV[7] .. buckets[#buckets] % 2048  -- a piece's number is its bucket's modulo 2048
end
if #bigs > 0 then bigs = redis.call('MGET', unpack(bigs)) end
for n, bucket in ipairs(buckets) do
  local i, at = n + 7, 4 * n + 4
  local epoch, seq = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local clean, top = true, nil
  if bigs[n] then  -- its last op, which was just applied, is not read: 35 ms for 10 MB
    clean = not redis.call('XRANGE', KEYS[i], '(' .. ARGV[at + 1] .. '-' .. ARGV[at + 2], '+', 'COUNT', 1)[1]
  else
    top = redis.call('XREVRANGE', KEYS[i], '+', '-', 'COUNT', 1)[1]
  end
  if top then
    local e, s = string.match(top[1], '(%d+)-(%d+)')
    clean = tonumber(e) < epoch or (tonumber(e) == epoch and tonumber(s) <= seq)
    if tonumber(e) == epoch and tonumber(s) < seq then redis.call('DEL', KEYS[5]) end
  elseif clean and epoch > 0 and redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('DEL', KEYS[5])
  end
  if clean then
    drained[#drained + 1] = bucket
  else
    more[#more + 1] = now + ARGV[2]
    more[#more + 1] = bucket
  end
end
-- as few calls as there may be: a batch has few ops, and a call takes a server that has just woken some 3 us
if #drained > 0 then redis.call('ZREM', KEYS[1], unpack(drained)) end
if #more > 0 then redis.call('ZADD', KEYS[1], 'XX', unpack(more)) end
if #buckets > 0 then
  local published = redis.call('HMGET', KEYS[3], unpack(buckets))
  for n, note in ipairs(redis.call('HMGET', KEYS[4], unpack(buckets))) do
    local at = 4 * n + 4
    if note and (past(note, ARGV[at + 1], ARGV[at + 2]) or note == ARGV[at + 3]) then done[#done + 1] = buckets[n] end
    if past(published[n], ARGV[at + 1], ARGV[at + 2]) then
      marks[#marks + 1] = buckets[n]
      marks[#marks + 1] = ARGV[at + 1] .. '-' .. ARGV[at + 2]
    end
  end
  if #marks > 0 then redis.call('HSET', KEYS[3], unpack(marks)) end
  if #done > 0 then redis.call('HDEL', KEYS[4], unpack(done)) end
end
if ARGV[4] ~= '' and redis.call('LPUSH', KEYS[7], ARGV[4]) > 1.1 * ARGV[5] then  -- not each time
  redis.call('LTRIM', KEYS[7], 0, ARGV[5] - 1)
end
local known = redis.call('HLEN', KEYS[6])
for at = 4 * (#KEYS - 7) + 8, #ARGV, 2 do
  if known >= tonumber(ARGV[3]) then known = redis.call('HLEN', KEYS[6]) end  -- counted too high below, never too low
  if known < tonumber(ARGV[3]) or redis.call('HGET', KEYS[6], ARGV[at]) then
    redis.call('HINCRBY', KEYS[6], ARGV[at], ARGV[at + 1])
    known = known + 1
  end
end
local left, ring = redis.call('ZCARD', KEYS[1]), false
-- what only rests is left to the sweepers
local due = left > 0 and ARGV[2] == '0' and redis.call('ZCOUNT', KEYS[1], '-inf', now) > 0
if ARGV[6] ~= '' then
  ring = due
else
  ring = due and redis.call('SET', KEYS[2], '1', 'NX', 'PX', ARGV[1])
end
return (ring and 1 or 0) .. ' ' .. left
