#!lua flags=allow-oom
-- End a scope's epoch if a log has forgotten entries of it, or if a log or a watermark is ahead of it.
--
-- KEYS  1 epoch of the scope, see `enqueue.lua`  then one log per bucket
-- ARGV  per log: bucket, epoch and seq of its watermark
-- Returns "forgot:<bucket>" or "ahead:<bucket>" if the epoch ended, else ''.
local value = redis.call('GET', KEYS[1]) or ''
local given, replid, map = string.match(value, '^(%d+) (%x+) (.*)$')
if not given or not string.find(redis.call('INFO', 'replication'), 'master_replid:' .. replid, 1, true) then
  return ''  -- a new epoch is due anyway
end
local epoch = given + 0
for i = 2, #KEYS do
  local bucket, mark_epoch, mark_seq = ARGV[3 * i - 5], ARGV[3 * i - 4] + 0, ARGV[3 * i - 3] + 0
  -- an empty stream has no last entry, but it knows the last id that it gave
  local info, last_epoch, last_seq = redis.pcall('XINFO', 'STREAM', KEYS[i]), -1, -1
  for n = 1, #info do
    if info[n] == 'last-generated-id' then last_epoch, last_seq = string.match(info[n + 1], '(%d+)-(%d+)') end
  end
  last_epoch, last_seq = last_epoch + 0, last_seq + 0
  local ahead = math.max(last_epoch, mark_epoch)
  if ahead > epoch and ahead < 2 ^ 53 then
    redis.call('SET', KEYS[1], string.format('%.0f ahead:%s', ahead, bucket))
    return 'ahead:' .. bucket
  end
  local begun = string.sub(map, bucket + 1, bucket + 1) == '1' or mark_epoch == epoch
  if begun and (last_epoch < epoch or (mark_epoch == epoch and last_seq < mark_seq)) then
    redis.call('SET', KEYS[1], given .. ' forgot:' .. bucket)
    return 'forgot:' .. bucket
  end
end
return ''
